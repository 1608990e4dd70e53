"""Which loss and which decoder bring what, with error bars. Run: python -m benchmarks.study --help"""
