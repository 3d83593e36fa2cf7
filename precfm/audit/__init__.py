"""Accountability: whether results are what their records say, where a number comes from, sharing, and the doctor.

It reads what the pipeline has made; the pipeline does not know it.
"""
