# cython: language_level=3, cdivision=True
"""JSON text into a buffer that grows; each function makes room for what it writes."""
from libc.math cimport fabs
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from cpython.object cimport PyObject

cdef enum:
    PADDING = 15               # bytes behind a text that put_padded() may read

cdef struct Out:
    PyObject* bytes            # owned: what is written so far, with room behind it; NULL where memory is out
    uint8_t* data
    Py_ssize_t size, room

cdef extern from "Python.h":
    PyObject* PyBytes_FromStringAndSize(const char* text, Py_ssize_t size) except NULL
    char* PyBytes_AS_STRING(PyObject* text)
    int _PyBytes_Resize(PyObject** text, Py_ssize_t size) except -1

cdef extern from *:
    """
    static const char brume_hex[] = "0123456789abcdef";
    static const char brume_base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    /* Whether any of eight bytes has to be looked at: not ASCII, a control character, a quote or a backslash. */
    static inline int brume_unusual(uint64_t w) {
        const uint64_t ones = 0x0101010101010101ULL, high = 0x8080808080808080ULL;
        uint64_t quote = w ^ (ones * '"'), slash = w ^ (ones * '\\\\');
        return ((w | (w - ones * 0x20) | (quote - ones) | (slash - ones)) & high) != 0;
    }
    /* How many bytes the UTF-8 sequence at p has, of which n are there; 0: it is none. */
    static inline int brume_sequence(const uint8_t *p, Py_ssize_t n) {
        #define MORE(i) ((p[i] & 0xC0) == 0x80)
        if (p[0] < 0xC2) return 0;
        if (p[0] < 0xE0) return n >= 2 && MORE(1) ? 2 : 0;
        if (p[0] < 0xF0) {
            if (n < 3 || !MORE(1) || !MORE(2)) return 0;
            if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] >= 0xA0)) return 0;
            return 3;
        }
        if (p[0] > 0xF4 || n < 4 || !MORE(1) || !MORE(2) || !MORE(3)) return 0;
        if ((p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] >= 0x90)) return 0;
        return 4;
        #undef MORE
    }
    """
    const char* brume_hex
    const char* brume_base64
    int brume_unusual(uint64_t word) noexcept nogil
    int brume_sequence(const uint8_t* p, Py_ssize_t n) noexcept nogil


cdef inline int begin(Out* out, Py_ssize_t room) except -1:
    out.bytes = PyBytes_FromStringAndSize(NULL, room)
    out.data, out.size, out.room = <uint8_t*> PyBytes_AS_STRING(out.bytes), 0, room
    return 0


cdef inline int grow(Out* out, Py_ssize_t room) except -1:
    _PyBytes_Resize(&out.bytes, room)
    out.data, out.room = <uint8_t*> PyBytes_AS_STRING(out.bytes), room
    return 0


cdef inline int reserve(Out* out, Py_ssize_t more) except -1:
    """Room for `more` bytes behind what is written."""
    if out.size + more > out.room:
        grow(out, out.room * 2 + more)
    return 0


cdef inline bytes finish(Out* out):
    """What is written."""
    _PyBytes_Resize(&out.bytes, out.size)
    return <bytes> out.bytes


cdef inline int put(Out* out, const void* data, Py_ssize_t size) except -1:
    reserve(out, size)
    memcpy(out.data + out.size, data, size)
    out.size += size
    return 0


cdef inline int put_byte(Out* out, uint8_t byte) except -1:
    reserve(out, 1)
    out.data[out.size] = byte
    out.size += 1
    return 0


cdef inline int put_padded(Out* out, const uint8_t* data, Py_ssize_t size) except -1:
    """A short text behind which PADDING more bytes can be read: it is copied in pieces of 16 bytes, without a call."""
    cdef Py_ssize_t at = 0
    reserve(out, size + PADDING)
    while at < size:
        memcpy(out.data + out.size + at, data + at, 16)
        at += 16
    out.size += size
    return 0


cdef inline int put_unsigned(Out* out, uint64_t value) except -1:
    cdef uint8_t[20] digits
    cdef int at = 20
    while True:
        at -= 1
        digits[at] = 48 + value % 10
        value //= 10
        if value == 0:
            break
    return put(out, &digits[0] + at, 20 - at)


cdef inline int put_signed(Out* out, int64_t value) except -1:
    if value < 0:
        put_byte(out, c"-")
        return put_unsigned(out, ~(<uint64_t> value) + 1)
    return put_unsigned(out, <uint64_t> value)


cdef inline int put_escaped(Out* out, const uint8_t* p, Py_ssize_t n) except -1:
    """Text as it stands between quotes. Raises ValueError where it is no UTF-8."""
    cdef uint64_t word
    cdef uint8_t byte, short
    cdef int length
    reserve(out, n + 16)              # and again after every escape, so that plain bytes need no asking
    while n:
        if n >= 8:
            memcpy(&word, p, 8)
            if not brume_unusual(word):
                memcpy(out.data + out.size, &word, 8)
                out.size += 8
                p += 8
                n -= 8
                continue
        byte = p[0]
        if byte >= 0x80:
            length = brume_sequence(p, n)
            if length == 0:
                raise ValueError("a string that is not UTF-8")
            memcpy(out.data + out.size, p, length)
            out.size += length
            p += length
            n -= length
            continue
        p += 1
        n -= 1
        if byte >= 0x20 and byte != 0x22 and byte != 0x5C:
            out.data[out.size] = byte
            out.size += 1
            continue
        short = (byte if byte == 0x22 or byte == 0x5C else c"n" if byte == 10 else c"t" if byte == 9 else c"r" if byte == 13
                 else c"b" if byte == 8 else c"f" if byte == 12 else 0)
        if short:
            out.data[out.size] = 0x5C
            out.data[out.size + 1] = short
            out.size += 2
        else:
            memcpy(out.data + out.size, b"\\u00", 4)
            out.data[out.size + 4] = brume_hex[byte >> 4]
            out.data[out.size + 5] = brume_hex[byte & 15]
            out.size += 6
        reserve(out, n + 16)
    return 0


cdef inline int put_string(Out* out, const uint8_t* p, Py_ssize_t n) except -1:
    put_byte(out, 0x22)
    put_escaped(out, p, n)
    return put_byte(out, 0x22)


cdef inline int put_quoted(Out* out, const uint8_t* p, Py_ssize_t n) except -1:
    """Text as a segment of a path, percent-encoded. Raises ValueError where it is no UTF-8."""
    cdef uint8_t byte
    cdef Py_ssize_t i = 0, length
    reserve(out, 3 * n)
    while i < n:
        if p[i] >= 0x80:
            length = brume_sequence(p + i, n - i)
            if length == 0:
                raise ValueError("a string that is not UTF-8")
        else:
            length = 1
        for i in range(i, i + length):
            byte = p[i]
            if 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or byte in (45, 46, 95, 126):
                out.data[out.size] = byte
                out.size += 1
            else:
                out.data[out.size] = 0x25
                out.data[out.size + 1] = brume_hex[byte >> 4] - (32 if byte >> 4 > 9 else 0)
                out.data[out.size + 2] = brume_hex[byte & 15] - (32 if byte & 15 > 9 else 0)
                out.size += 3
        i += 1
    return 0


cdef inline int put_base64(Out* out, const uint8_t* p, Py_ssize_t n) except -1:
    cdef uint8_t* to
    cdef uint64_t three
    cdef Py_ssize_t left = n
    reserve(out, n // 3 * 4 + 8)
    to = out.data + out.size
    to[0] = 0x22
    to += 1
    while left > 0:
        three = <uint64_t> p[0] << 16 | (<uint64_t> p[1] << 8 if left > 1 else 0) | (p[2] if left > 2 else 0)
        to[0] = brume_base64[three >> 18]
        to[1] = brume_base64[three >> 12 & 63]
        to[2] = brume_base64[three >> 6 & 63] if left > 1 else c"="
        to[3] = brume_base64[three & 63] if left > 2 else c"="
        to += 4
        p += 3
        left -= 3
    to[0] = 0x22
    out.size = to + 1 - out.data
    return 0


cdef inline bint is_integral(double value, double below) noexcept nogil:
    """Whether a double has no fraction and is smaller than a bound, which is at most 2 ** 53."""
    return fabs(value) < below and value == <double> <int64_t> value


cdef inline int put_digits(Out* out, uint64_t value, int width) except -1:
    """A number with leading zeros."""
    cdef int at
    reserve(out, width)
    for at in range(width - 1, -1, -1):
        out.data[out.size + at] = 48 + value % 10
        value //= 10
    out.size += width
    return 0


cdef inline int put_moment(Out* out, int64_t seconds) except -1:
    """2026-01-31T12:00:00 of seconds since 1970, for the years 1000 to 9999. "chrono-Compatible Low-Level Date Algorithms", Hinnant."""
    cdef int64_t days = seconds // 86400, rest = seconds % 86400, era, of_era, year_of_era, of_year, month
    if rest < 0:                      # C divides towards zero
        rest += 86400
        days -= 1
    days += 719468                    # from 0000-03-01 on
    era = days // 146097
    of_era = days - era * 146097
    year_of_era = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * of_year + 2) // 153
    put_digits(out, year_of_era + era * 400 + (1 if month >= 10 else 0), 4)
    put_byte(out, c"-")
    put_digits(out, month + 3 if month < 10 else month - 9, 2)
    put_byte(out, c"-")
    put_digits(out, of_year - (153 * month + 2) // 5 + 1, 2)
    put_byte(out, c"T")
    put_digits(out, rest // 3600, 2)
    put_byte(out, c":")
    put_digits(out, rest // 60 % 60, 2)
    put_byte(out, c":")
    return put_digits(out, rest % 60, 2)
