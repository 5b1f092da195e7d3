"""The smallest guests that answer: boot sectors that say "guest ready" on the serial port and power off when asked."""

#: xor segments; mask IRQ 9; outw 0x602 (power button enabled); print the text to COM1; hlt until bit 8 of port 0x600 is set;
#: outw 0x604, 0x2000 (ACPI's S5). The text follows the code.
_CODE = bytes.fromhex(
    "fa31c08ed88ed0bc007cb0ffe6a1ba0206b80001effbbaf803be387cac84"
    "c07403eeebf8f4ba0006edf6c40174f6ba0406b80020eff4ebfd")


def boot_sector(text: bytes = b"guest ready\r\n") -> bytes:
    """512 bytes that a PC's BIOS boots."""
    return (_CODE + text + b"\0").ljust(510, b"\0") + b"\x55\xaa"


def disk_image(size: int = 1 << 20) -> bytes:
    """A raw disk that begins with the boot sector."""
    return boot_sector().ljust(size, b"\0")
