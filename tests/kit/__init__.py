"""What tests and benchmarks share: fake teachers, small students, processes to kill, servers that fail.

The files called run_*.py are programs that tests start in processes of their own.
"""
