# cython: language_level=3, cdivision=True
"""Protobuf's wire bytes to JSON by tables. The specification is :mod:`control.gateway.encoding`; this file only makes it fast.

A message is read twice: once over its bytes to note for each field where it stands, then field by field in the order in
which they are written. What is read from bytes is checked against their end; what is not well-formed is a ValueError.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_XDECREF
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport isfinite, signbit
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from control.gateway._json cimport (
    begin, finish, is_integral, put, put_base64, put_byte, put_digits, put_escaped, put_moment, put_padded, put_quoted, put_signed,
    put_string, put_unsigned, PADDING,
)
from control.gateway._wire cimport BYTES_OF, FIXED64, VARINT, Record, read_fixed, read_record, read_varint

from google.protobuf.timestamp_pb2 import Timestamp
from orjson import dumps

from control.gateway import times
from control.gateway.encoding import shortest_float32

_MOMENTS = {ZULU: times.zulu, MICROS_ZULU: times.micros_zulu, MICROS: times.micros}


cdef inline bint fits(const Field* field, int wire) noexcept:
    """Whether a field's value can have a type on the wire; where not, it is skipped as unknown fields are."""
    return wire == field.wire or (wire == BYTES_OF and field.shape == REPEATED)


cdef inline Py_ssize_t place_of(const Layout* layout, uint32_t number) noexcept:
    cdef Py_ssize_t place
    if number < layout.n_dense:
        return layout.dense[number]
    for place in range(layout.n_fields):
        if layout.fields[place].number == number:
            return place
    return -1


cdef int scan(const Layout* layout, const uint8_t* p, const uint8_t* end, Slot* slots) except -1:
    """Note where a message's fields stand; returns whether others were passed over. A member of a oneof ends those before it."""
    cdef Py_ssize_t place, other
    cdef Record record
    cdef Slot* slot
    cdef const Field* field
    cdef const uint8_t* start
    cdef int unknown = 0
    memset(slots, 0, layout.n_fields * sizeof(Slot))
    while p < end:
        start = p
        p = read_record(p, end, &record)
        place = place_of(layout, record.number)
        if place < 0 or not fits(&layout.fields[place], record.wire):
            unknown = 1
            continue
        field = &layout.fields[place]
        if field.oneof >= 0:
            for other in range(layout.n_fields):
                if other != place and layout.fields[other].oneof == field.oneof:
                    slots[other].count = 0
        slot = &slots[place]
        if slot.count == 0:
            slot.first = start
        slot.count += 1
        slot.last, slot.stop = record, p
    return unknown


cdef inline const uint8_t* next_of(const Field* field, const uint8_t* p, const uint8_t* end, Record* record) except NULL:
    """The next record of one field, passing over others."""
    while p < end:
        p = read_record(p, end, record)
        if record.number == field.number and fits(field, record.wire):
            return p
    raise ValueError("truncated")


cdef inline int put_text(Run* run, const Text* text) except -1:
    return put_padded(&run.out, text.data, text.size)


cdef int put_double(Run* run, double value) except -1:
    """A double as orjson writes it."""
    cdef bytes text
    if value != 0 and is_integral(value, 1e15):
        put_signed(&run.out, <int64_t> value)
        return put(&run.out, b".0", 2)
    text = dumps(value)
    return put(&run.out, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef int put_moment_of(Run* run, int form, const uint8_t* p, const uint8_t* end) except -1:
    """A google.protobuf.Timestamp."""
    cdef int64_t seconds = 0
    cdef int32_t nanos = 0
    cdef Record record
    cdef bytes text
    while p < end:
        p = read_record(p, end, &record)
        if record.wire == VARINT and record.number == 1:
            seconds = <int64_t> record.raw
        elif record.wire == VARINT and record.number == 2:
            nanos = <int32_t> <uint32_t> record.raw
    if not -30610224000LL <= seconds <= 253402300799LL or not 0 <= nanos < 1000000000:      # the years 1000 to 9999
        try:
            text = dumps(_MOMENTS[form](Timestamp(seconds=seconds, nanos=nanos)))
        except (OverflowError, OSError) as error:
            raise ValueError("a time that no calendar has") from error
        return put(&run.out, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    put_byte(&run.out, c'"')
    put_moment(&run.out, seconds)
    if form != ZULU:
        put_byte(&run.out, c".")
        put_digits(&run.out, nanos // 1000, 6)
    if form != MICROS:
        put_byte(&run.out, c"Z")
    return put_byte(&run.out, c'"')


cdef int put_mask(Run* run, const uint8_t* p, const uint8_t* end) except -1:
    """A google.protobuf.FieldMask."""
    cdef Record record
    cdef bint is_first = True
    put_byte(&run.out, c'"')
    while p < end:
        p = read_record(p, end, &record)
        if record.wire == BYTES_OF and record.number == 1:
            if not is_first:
                put_byte(&run.out, c",")
            is_first = False
            put_escaped(&run.out, record.data, record.size)
    return put_byte(&run.out, c'"')


cdef int put_enum(Run* run, const Field* field, int32_t number) except -1:
    cdef Py_ssize_t i
    if 0 <= number < field.n_spellings and field.spellings[number].number == number:
        return put_text(run, &field.spellings[number].text)
    for i in range(field.n_spellings):
        if field.spellings[i].number == number:
            return put_text(run, &field.spellings[i].text)
    return put_signed(&run.out, number)


cdef int put_value(Run* run, const Field* field, const Record* record, int filtered) except -1:
    """One value of a field."""
    cdef uint32_t low = <uint32_t> record.raw
    cdef float single
    cdef double real
    cdef int part
    cdef bytes text
    if field.kind == STRING:
        put_byte(&run.out, c'"')
        if field.is_href and record.size:
            for part in range(3):
                put_escaped(&run.out, run.parts[part].data, run.parts[part].size)
        put_escaped(&run.out, record.data, record.size)
        return put_byte(&run.out, c'"')
    if field.kind == MESSAGE:
        return put_message(run, field.child, record.data, record.data + record.size, filtered)
    if field.kind == BOOL:
        return put(&run.out, b"true", 4) if record.raw else put(&run.out, b"false", 5)
    if field.kind == INT32:
        return put_signed(&run.out, <int32_t> low)
    if field.kind == INT64:
        return put_signed(&run.out, <int64_t> record.raw)
    if field.kind == UINT32:
        return put_unsigned(&run.out, low)
    if field.kind == UINT64:
        return put_unsigned(&run.out, record.raw)
    if field.kind == SINT32:
        return put_signed(&run.out, <int32_t> (low >> 1 ^ (0 - (low & 1))))
    if field.kind == SINT64:
        return put_signed(&run.out, <int64_t> (record.raw >> 1 ^ (0 - (record.raw & 1))))
    if field.kind == ENUM:
        return put_enum(run, field, <int32_t> low)
    if field.kind == BYTES:
        return put_base64(&run.out, record.data, record.size)
    if field.kind == NULL_VALUE:
        return put(&run.out, b"null", 4)
    if field.kind == FLOAT or field.kind == WIDENED:
        memcpy(&single, &low, 4)
        if field.kind == WIDENED or is_integral(single, 1e6) or not isfinite(single):
            return put_double(run, single)
        text = dumps(shortest_float32(single))
        return put(&run.out, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    memcpy(&real, &record.raw, 8)
    if field.kind == NUMBER and is_integral(real, 9007199254740992.0) and (real != 0 or not signbit(real)):
        return put_signed(&run.out, <int64_t> real)
    return put_double(run, real)


cdef inline int put_last(Run* run, const Field* field, const Slot* slot, int filtered) except -1:
    """The value of a field that is no list: the last one sent, but all parts of a message."""
    if slot.count > 1 and field.kind == MESSAGE:
        return put_merged(run, field, slot, filtered)
    return put_value(run, field, &slot.last, filtered)


cdef int put_merged(Run* run, const Field* field, const Slot* slot, int filtered) except -1:
    """A message in several parts, which mean what they mean one behind the other."""
    cdef uint8_t* whole = <uint8_t*> PyMem_Malloc(slot.stop - slot.first)
    cdef const uint8_t* p = slot.first
    cdef Py_ssize_t size = 0, left
    cdef Record part
    if whole == NULL:
        raise MemoryError
    try:
        for left in range(slot.count):
            p = next_of(field, p, slot.stop, &part)
            memcpy(whole + size, part.data, part.size)
            size += part.size
        return put_message(run, field.child, whole, whole + size, filtered)
    finally:
        PyMem_Free(whole)


cdef int put_packed(Run* run, const Field* field, const Record* packed) except -1:
    """The elements of a packed field."""
    cdef const uint8_t* p = packed.data
    cdef const uint8_t* end = p + packed.size
    cdef Record element
    memset(&element, 0, sizeof(Record))
    while p < end:
        if field.wire == VARINT:
            p = read_varint(p, end, &element.raw)
        else:
            p = read_fixed(p, end, 8 if field.wire == FIXED64 else 4, &element.raw)
        put_byte(&run.out, c",")
        put_value(run, field, &element, 0)
    return 0


cdef int put_list(Run* run, const Field* field, const Slot* slot, int filtered) except -1:
    cdef Py_ssize_t start = run.out.size, left
    cdef const uint8_t* p = slot.first
    cdef Record element
    for left in range(slot.count):
        p = next_of(field, p, slot.stop, &element)
        if element.wire == BYTES_OF and field.wire != BYTES_OF:
            put_packed(run, field, &element)
        else:
            put_byte(&run.out, c",")
            put_value(run, field, &element, filtered)
    return close(run, start, c"[", c"]")


cdef inline int close(Run* run, Py_ssize_t start, uint8_t opening, uint8_t closing) except -1:
    """End a list or object: each member brought a comma, and the first one's place is the opening's."""
    if run.out.size == start:
        put_byte(&run.out, opening)
    else:
        run.out.data[start] = opening
    return put_byte(&run.out, closing)


cdef inline bint same(const Text* one, const Text* other) noexcept:
    return one.size == other.size and memcmp(one.data, other.data, one.size) == 0


cdef inline bint is_wanted(const Run* run, const Text* name) noexcept:
    cdef Py_ssize_t i
    for i in range(run.n_wanted):
        if same(&run.wanted[i], name):
            return True
    return False


cdef bint is_written(const Layout* layout, const Slot* slots, const Text* name) noexcept:
    """Whether a message's object has a key of its own of that name."""
    cdef Py_ssize_t i
    for i in range(layout.n_fields):
        if slots[i].written and same(&layout.fields[i].name, name):
            return True
    return layout.n_links > 0 and same(&layout.links_name, name)


cdef int note_last(const Field* key, Slot* pairs, Py_ssize_t n) except -1:
    """Mark the entries of a map that later ones replace: their keys' `written` is set."""
    cdef Py_ssize_t i, j
    cdef dict seen
    cdef Text one, other
    if n > FEW:
        seen = {}
        for i in range(n):
            name = pairs[2 * i].last.data[:pairs[2 * i].last.size] if key.kind == STRING else key_number(key, pairs[2 * i].last.raw)
            j = seen.setdefault(name, i)
            if j != i:
                pairs[2 * j].written = True
                seen[name] = i
        return 0
    for i in range(n):
        one = Text(pairs[2 * i].last.data, pairs[2 * i].last.size)
        for j in range(i + 1, n):
            other = Text(pairs[2 * j].last.data, pairs[2 * j].last.size)
            if same(&one, &other) if key.kind == STRING else (
                    key_number(key, pairs[2 * i].last.raw) == key_number(key, pairs[2 * j].last.raw)):
                pairs[2 * i].written = True
                break
    return 0


cdef inline uint64_t key_number(const Field* key, uint64_t raw) noexcept:
    """What tells a map's keys apart: the bits that their type keeps."""
    if key.kind == BOOL:
        return raw != 0
    if key.kind in (INT32, UINT32, SINT32):
        return <uint32_t> raw
    return raw


cdef int put_entries(Run* run, const Field* field, const Slot* slot, int filtered, const Layout* parent, Slot* slots) except -1:
    """A map's entries, each behind a comma; returns whether it has any. With a parent they are its further keys.

    An entry that has unknown fields is itself unknown, as it is for protobuf's parser.
    """
    cdef const Field* key = &field.child.fields[0]
    cdef const Field* item = &field.child.fields[1]
    cdef Slot[16] few
    cdef Slot* pairs = few
    cdef Record entry
    cdef Py_ssize_t i, n = slot.count, start
    cdef const uint8_t* p = slot.first
    cdef Text name
    if n > FEW:
        if n > 0x7FFFFFFFFFFFFFFF // <Py_ssize_t> (2 * sizeof(Slot)):
            raise MemoryError
        pairs = <Slot*> PyMem_Malloc(n * 2 * sizeof(Slot))
        if pairs == NULL:
            raise MemoryError
    try:
        n = 0
        for i in range(slot.count):
            p = next_of(field, p, slot.stop, &entry)
            if scan(field.child, entry.data, entry.data + entry.size, pairs + 2 * n) == 0:
                n += 1
        if n > 1:
            note_last(key, pairs, n)
        for i in range(n):
            if pairs[2 * i].written:
                continue
            start = run.out.size
            if key.kind == STRING:
                put_byte(&run.out, c",")
                put_string(&run.out, pairs[2 * i].last.data, pairs[2 * i].last.size)
                name = Text(pairs[2 * i].last.data, pairs[2 * i].last.size)
            else:
                put(&run.out, b',"', 2)
                put_value(run, key, &pairs[2 * i].last, 0)
                name = Text(run.out.data + start + 2, run.out.size - start - 2)
                put_byte(&run.out, c'"')
            if (filtered == 1 and not is_wanted(run, &name)) or (parent != NULL and is_written(parent, slots, &name)):
                run.out.size = start
                continue
            put_byte(&run.out, c":")
            if pairs[2 * i + 1].count or item.kind == MESSAGE:
                put_last(run, item, &pairs[2 * i + 1], filtered == 2)
            else:
                put_text(run, &item.absent)
        return n > 0
    finally:
        if pairs != few:
            PyMem_Free(pairs)


cdef bint is_zero(const Field* field, const Record* record) noexcept:
    """Whether a single value is its type's zero."""
    if field.wire == BYTES_OF:
        return record.size == 0
    if field.kind == DOUBLE:
        return record.raw << 1 == 0                  # minus zero is zero, too
    if field.kind == FLOAT:
        return <uint32_t> record.raw << 1 == 0
    if field.kind == INT64 or field.kind == UINT64 or field.kind == SINT64 or field.kind == BOOL:
        return record.raw == 0
    return <uint32_t> record.raw == 0


cdef int put_absent(Run* run, const Field* field, Slot* slot) except -1:
    if field.absent_is_written:
        put_text(run, &field.absent)
        slot.written = True
    return 0


cdef int put_field(Run* run, const Field* field, Slot* slot, int filtered) except -1:
    """A field's key and value, or what stands for it where it is not set."""
    cdef Py_ssize_t start = run.out.size, inner
    cdef bint is_empty
    if slot.count == 0:
        return put_absent(run, field, slot)
    if field.shape == SINGLE:
        if field.zero_is_absent and is_zero(field, &slot.last):
            return put_absent(run, field, slot)
        put_text(run, &field.key)
        put_last(run, field, slot, filtered)
    else:
        put_text(run, &field.key)
        inner = run.out.size
        if field.shape == MAP:
            is_empty = put_entries(run, field, slot, filtered, NULL, NULL) == 0
            close(run, inner, c"{", c"}")
        else:
            put_list(run, field, slot, filtered == 1)
            is_empty = run.out.size == inner + 2
        if field.zero_is_absent and is_empty:
            run.out.size = start
            return put_absent(run, field, slot)
    slot.written = True
    return 0


cdef int put_links(Run* run, const Layout* layout, const Slot* slots) except -1:
    """The family's links of a resource."""
    cdef Py_ssize_t i, chosen = 0
    cdef const Slot* id_slot = &slots[layout.id_place]
    cdef const Template* template
    cdef const Piece* piece
    for i in range(layout.n_links):
        if layout.links[i].since <= run.version:
            chosen = i
    template = &layout.links[chosen]
    for i in range(template.n_pieces):
        piece = &template.pieces[i]
        if piece.part < 0:
            put_text(run, &piece.text)
        elif piece.part < 3:
            put_escaped(&run.out, run.parts[piece.part].data, run.parts[piece.part].size)
        elif id_slot.count == 0:
            continue
        elif layout.id_is_quoted:
            put_quoted(&run.out, id_slot.last.data, id_slot.last.size)
        else:
            put_escaped(&run.out, id_slot.last.data, id_slot.last.size)
    return 0


cdef int put_extra(Run* run, const Layout* layout, const Slot* slots) except -1:
    """The context's further keys of the whole answer."""
    cdef Py_ssize_t i
    for i in range(run.n_extra):
        if not is_written(layout, slots, &run.extra[2 * i]):
            put_text(run, &run.extra[2 * i + 1])
    return 0


cdef Slot* slots_for(Run* run, const Layout* layout) except NULL:
    """The array of slots of the depth that a run is at."""
    if run.n_slots[run.depth] < layout.n_fields:
        free(run.slots[run.depth])
        run.n_slots[run.depth] = 0
        run.slots[run.depth] = <Slot*> malloc(layout.n_fields * sizeof(Slot))
        if run.slots[run.depth] == NULL:
            raise MemoryError
        run.n_slots[run.depth] = layout.n_fields
    return run.slots[run.depth]


cdef int put_message(Run* run, const Layout* layout, const uint8_t* p, const uint8_t* end, int filtered) except -1:
    """A message. `filtered`: 1, an object has only the keys that are wanted; 2, the objects in its values do."""
    if layout.form == EMPTY:
        return put(&run.out, b"{}", 2)
    if layout.form == MASK:
        return put_mask(run, p, end)
    if layout.form >= ZULU:
        return put_moment_of(run, layout.form, p, end)
    if run.depth >= MAX_DEPTH:
        raise ValueError(f"messages in messages, more than {MAX_DEPTH} deep")
    run.depth += 1
    put_fields(run, layout, p, end, filtered)
    run.depth -= 1
    return 0


cdef int put_fields(Run* run, const Layout* layout, const uint8_t* p, const uint8_t* end, int filtered) except -1:
    cdef Slot nothing
    cdef Slot* slots = slots_for(run, layout) if layout.n_fields else &nothing
    cdef Py_ssize_t i, start = run.out.size
    cdef const Field* field
    scan(layout, p, end, slots)
    if layout.form == SOLE:
        return put_field(run, &layout.fields[0], &slots[0], filtered)
    if layout.form == CHOICE:
        for i in range(layout.n_fields):
            if slots[i].count:
                return put_field(run, &layout.fields[i], &slots[i], filtered)
        return put(&run.out, b"null", 4)
    for i in range(layout.n_fields):
        field = &layout.fields[i]
        if field.shape == UNSEEN or run.version < field.since or run.version > field.until:
            continue
        if field.shape == FLATTENED:
            if slots[i].count:
                put_entries(run, field, &slots[i], filtered, layout, slots)
        elif filtered != 1 or is_wanted(run, &field.name):
            put_field(run, field, &slots[i], filtered == 2)
    if layout.n_links and (filtered != 1 or is_wanted(run, &layout.links_name)):
        put_links(run, layout, slots)
    if run.n_extra and run.depth == 1:
        put_extra(run, layout, slots)
    return close(run, start, c"{", c"}")


cdef Text text_of(list kept, bytes data):
    """Bytes for a struct to point to, which `kept` holds alive, with what put_padded() reads beyond them."""
    cdef bytes padded = data + bytes(PADDING)
    kept.append(padded)
    return Text(<const uint8_t*> PyBytes_AS_STRING(padded), PyBytes_GET_SIZE(data))


cdef class Table:
    """How messages of one type are written. It is of use after `fill`; the tables that it names live as long as it does."""

    cdef Layout layout
    cdef list kept
    cdef double growth                  # how much longer than its message a large answer was the last time, and some more
    cdef bint is_flat                   # an object without flattened fields

    def __init__(self, int form):
        self.layout.form = form
        self.layout.id_place = -1
        self.growth = 2.0
        self.kept = []

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.layout.fields != NULL:
            for i in range(self.layout.n_fields):
                free(self.layout.fields[i].spellings)
        free(self.layout.fields)
        free(self.layout.dense)
        if self.layout.links != NULL:
            for i in range(self.layout.n_links):
                free(self.layout.links[i].pieces)
        free(self.layout.links)

    def fill(self, list rows):
        """Set the fields once, in the order in which they are written: control.gateway.tables.Row."""
        cdef Py_ssize_t i, j
        cdef uint32_t largest = max([row.number for row in rows if row.number < 1024], default=0)
        cdef Field* field
        if self.layout.fields != NULL:
            raise ValueError("a table is filled once")
        self.layout.fields = <Field*> calloc(max(len(rows), 1), sizeof(Field))
        self.layout.dense = <int32_t*> malloc((largest + 1) * sizeof(int32_t))
        if self.layout.fields == NULL or self.layout.dense == NULL:
            raise MemoryError
        memset(self.layout.dense, 0xFF, (largest + 1) * sizeof(int32_t))      # -1
        for i, row in enumerate(rows):
            field = &self.layout.fields[i]
            field.number, field.kind, field.wire, field.shape = row.number, row.kind, row.wire, row.shape
            field.oneof, field.since, field.until = row.oneof, row.since, row.until
            field.is_href, field.zero_is_absent = row.is_href, row.zero_is_absent
            field.absent_is_written = row.absent is not None
            key = b"," + dumps(row.name) + b":" if row.name else b""
            field.name = text_of(self.kept, row.name.encode())
            field.key = text_of(self.kept, key)
            field.absent = text_of(self.kept, key + (row.absent or b""))
            if row.kind == MESSAGE or row.shape in (MAP, FLATTENED):
                self.kept.append(row.child)
                field.child = &(<Table?> row.child).layout
            if row.spellings:
                field.spellings = <Spelling*> calloc(len(row.spellings), sizeof(Spelling))
                if field.spellings == NULL:
                    raise MemoryError
                field.n_spellings = len(row.spellings)
                for j, (number, spelling) in enumerate(row.spellings):
                    field.spellings[j] = Spelling(number, text_of(self.kept, dumps(spelling)))
            if row.number <= largest:
                self.layout.dense[<uint32_t> row.number] = i
            self.layout.n_fields = i + 1
        self.layout.n_dense = largest + 1
        self.is_flat = self.layout.form == OBJECT and all(row.shape != FLATTENED for row in rows)

    def link(self, str name, Py_ssize_t id_place, bint id_is_quoted, list templates):
        """Give the resource links: per microversion from which on they hold, ascending, pieces of text or part numbers."""
        cdef Py_ssize_t i, j
        cdef Template* template
        self.layout.links = <Template*> calloc(len(templates), sizeof(Template))
        if self.layout.links == NULL:
            raise MemoryError
        for i, (since, pieces) in enumerate(templates):
            template = &self.layout.links[i]
            template.since = since
            template.pieces = <Piece*> calloc(len(pieces), sizeof(Piece))
            if template.pieces == NULL:
                raise MemoryError
            self.layout.n_links = i + 1
            for j, piece in enumerate(pieces):
                template.pieces[j] = (Piece(-1, text_of(self.kept, piece)) if type(piece) is bytes
                                      else Piece(piece, Text(NULL, 0)))
                template.n_pieces = j + 1
        self.layout.links_name = text_of(self.kept, name.encode())
        self.layout.id_place, self.layout.id_is_quoted = id_place, id_is_quoted

    def covers(self, context):
        """Whether `transcode` takes a context. Not: further keys beside flattened ones, chosen fields of a resource's links."""
        return (self.is_flat or not context.extra) and (self.layout.n_links == 0 or not context.fields)

    def transcode(self, bytes data, context):
        """The JSON of a message, for a control.gateway.context.Context.

        Raises ValueError where the bytes are no such message, or it is more than MAX_DEPTH deep, or the table does not cover
        the context. Fields that are not written are passed over without a look into them.
        """
        cdef Run run
        cdef const uint8_t* start = <const uint8_t*> PyBytes_AS_STRING(data)
        cdef int depth, part
        cdef str base = context.base, mount = context.mount, prefix = context.prefix
        cdef frozenset fields = context.fields
        cdef dict extra = context.extra
        cdef list kept = []
        cdef Py_ssize_t i
        if self.layout.fields == NULL or not self.covers(context):
            raise ValueError("the table is not filled, or does not cover the context")
        memset(&run, 0, sizeof(Run))
        run.version = context.version
        begin(&run.out, <Py_ssize_t> (self.growth * PyBytes_GET_SIZE(data)) + 512)
        try:
            for part, text in enumerate((base, mount, prefix)):
                run.parts[part].data = <const uint8_t*> PyUnicode_AsUTF8AndSize(text, &run.parts[part].size)
            if fields:
                run.wanted = <Text*> calloc(len(fields), sizeof(Text))
                if run.wanted == NULL:
                    raise MemoryError
                for i, name in enumerate(fields):
                    run.wanted[i] = text_of(kept, name.encode("utf-8", "surrogatepass"))
                run.n_wanted = len(fields)
            if extra:
                run.extra = <Text*> calloc(2 * len(extra), sizeof(Text))
                if run.extra == NULL:
                    raise MemoryError
                run.n_extra = len(extra)
                for i, (name, item) in enumerate(extra.items()):
                    run.extra[2 * i] = text_of(kept, name.encode())
                    run.extra[2 * i + 1] = text_of(kept, b"," + dumps(name) + b":" + dumps(item))
            put_message(&run, &self.layout, start, start + PyBytes_GET_SIZE(data), 2 if fields else 0)
            if PyBytes_GET_SIZE(data) > 1024:
                self.growth = min(1.1 * run.out.size / PyBytes_GET_SIZE(data), 8.0)
            return finish(&run.out)
        finally:
            Py_XDECREF(run.out.bytes)
            free(run.wanted)
            free(run.extra)
            for depth in range(MAX_DEPTH + 1):
                free(run.slots[depth])
