# cython: language_level=3
"""C-level interface of :mod:`scheduler._pack`."""
from libc.stdint cimport int64_t

cdef enum:
    NO_FIT = -1                # slack_ppm's answer when the demand does not fit

cdef int64_t slack_ppm(
    const int64_t* free, const int64_t* capacity, const int64_t* demand, Py_ssize_t n_resources,
) noexcept nogil

cdef int64_t distance_ppm(
    const int64_t* free, const int64_t* capacity, const int64_t* demand, Py_ssize_t n_resources, Py_ssize_t* first_short,
) noexcept nogil
