# cython: language_level=3
"""C-level interface of :mod:`control.gateway._transcode`."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from control.gateway._json cimport Out
from control.gateway._wire cimport Record

cdef enum:
    MAX_DEPTH = 128            # of messages in messages; protobuf's own parsers give up at 100
    FEW = 8                    # entries of a map that are compared pair by pair; a map of more gets a dict

cpdef enum Kind:               # how a field's value is written
    INT32, INT64, UINT32, UINT64, SINT32, SINT64, BOOL, ENUM
    FLOAT, WIDENED, DOUBLE, NUMBER      # WIDENED: a float with a double's digits; NUMBER: an integer where it has no fraction
    STRING, BYTES, MESSAGE, NULL_VALUE

cpdef enum Shape:
    SINGLE, REPEATED, MAP, FLATTENED    # FLATTENED: a map whose entries stand among the message's own keys
    UNSEEN                              # only read: it may end another member of its oneof, or name the resource

cpdef enum Form:               # how a message is written
    OBJECT, SOLE, CHOICE, MASK          # SOLE: as its only field's value; CHOICE: as the value of the field that is set
    ZULU, MICROS_ZULU, MICROS, EMPTY

cdef struct Layout             # below

cdef struct Text:
    const uint8_t* data
    Py_ssize_t size

cdef struct Spelling:
    int32_t number
    Text text                  # with its quotes

cdef struct Field:
    uint32_t number
    uint8_t kind, wire, shape, is_href, zero_is_absent, absent_is_written
    int32_t oneof              # -1: none
    int64_t since, until       # microversions, both inclusive
    Text key                   # ,"name":  or nothing
    Text name
    Text absent                # key and value where the field is not set
    Layout* child              # of a message, or of a map's entry
    Spelling* spellings
    Py_ssize_t n_spellings

cdef struct Piece:
    int32_t part               # of the context: 0 base, 1 mount, 2 prefix, 3 the resource's id; -1: text
    Text text

cdef struct Template:
    int64_t since
    Piece* pieces
    Py_ssize_t n_pieces

cdef struct Layout:
    int form
    Field* fields              # in the order in which they are written
    Py_ssize_t n_fields
    int32_t* dense             # place of a field by its number; -1: none
    uint32_t n_dense
    Template* links            # by microversion, ascending; none: no links
    Py_ssize_t n_links
    Text links_name
    Py_ssize_t id_place
    bint id_is_quoted

cdef struct Slot:              # what one message's bytes hold of one field
    Record last
    const uint8_t* first       # where the first one's tag is
    const uint8_t* stop        # where the last one ends
    Py_ssize_t count
    bint written

cdef struct Run:               # one call's output and context
    Out out
    int64_t version
    Text[3] parts              # base, mount, prefix
    Text* wanted
    Py_ssize_t n_wanted
    Text* extra                # name and text of each in turn
    Py_ssize_t n_extra
    int depth
    Slot* slots[129]           # one array per depth, from 1 to MAX_DEPTH
    Py_ssize_t n_slots[129]

cdef int put_message(Run* run, const Layout* layout, const uint8_t* p, const uint8_t* end, int filtered) except -1
