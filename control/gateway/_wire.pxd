# cython: language_level=3, cdivision=True
"""Protobuf's wire format, read record by record. Nothing is read beyond the end; what is not well-formed is a ValueError."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:                     # wire types
    VARINT = 0
    FIXED64 = 1
    BYTES_OF = 2
    FIXED32 = 5

cdef struct Record:            # one field's tag and value
    uint64_t raw               # of a varint or fixed bits
    const uint8_t* data        # of bytes
    Py_ssize_t size
    uint32_t number
    int wire


cdef inline const uint8_t* wrong(str why) except NULL:
    raise ValueError(why)


cdef inline const uint8_t* read_long_varint(const uint8_t* p, const uint8_t* end, uint64_t* value) except NULL:
    cdef uint64_t made = 0
    cdef int shift = 0
    cdef uint8_t byte
    while shift < 70:
        if p >= end:
            return wrong("truncated")
        byte = p[0]
        p += 1
        if shift == 63 and byte > 1:
            break
        made |= <uint64_t> (byte & 0x7F) << shift
        if byte < 0x80:
            value[0] = made
            return p
        shift += 7
    return wrong("a varint of more than 64 bits")


cdef inline const uint8_t* read_varint(const uint8_t* p, const uint8_t* end, uint64_t* value) except NULL:
    """A varint; returns where the next thing begins, as all of these do."""
    if p < end and p[0] < 0x80:
        value[0] = p[0]
        return p + 1
    return read_long_varint(p, end, value)


cdef inline const uint8_t* read_fixed(const uint8_t* p, const uint8_t* end, Py_ssize_t size, uint64_t* value) except NULL:
    """The bits of a fixed value of 4 or 8 bytes."""
    if end - p < size:
        return wrong("truncated")
    value[0] = 0
    memcpy(value, p, size)
    return p + size


cdef inline const uint8_t* read_record(const uint8_t* p, const uint8_t* end, Record* record) except NULL:
    """One field with its tag."""
    cdef uint64_t value = 0
    p = read_varint(p, end, &value)
    if value < 8 or value >> 32:
        return wrong("a field without a number")
    record.number, record.wire = <uint32_t> value >> 3, value & 7
    if record.wire == VARINT:
        return read_varint(p, end, &record.raw)
    if record.wire == BYTES_OF:
        p = read_varint(p, end, &value)
        if value > <uint64_t> (end - p):
            return wrong("truncated")
        record.data, record.size = p, <Py_ssize_t> value
        return p + value
    if record.wire == FIXED64 or record.wire == FIXED32:
        return read_fixed(p, end, 8 if record.wire == FIXED64 else 4, &record.raw)
    return wrong("a group, or no known type")
