"""Sizes that the retrieval family is held against."""

# (queries, rows of the bank, D, k): one, primes, fewer rows than k, several tiles
CASES = [(1, 1, 1, 1), (7, 13, 5, 3), (3, 4, 2, 9), (5, 0, 3, 2), (0, 6, 3, 2), (4, 130, 0, 3), (1030, 2100, 8, 15),
         (2, 4200, 33, 1024)]  # fmt: skip
# the tests of Triton kernels in their interpreter
INTERPRETED_TESTS = {
    "test_values_and_indices",
    "test_dtypes",
    "test_what_is_not_retrieved",
    "test_a_query_without_neighbors_has_no_label",
}
