"""Gives Bochs 3.0 what it lacks of AMX.

python mend_bochs.py BOCHS

Its products of tiles take every byte for unsigned.  What it saves of tiles, when another program
gets the processor, is not what it restores.  And Linux lends tiles only where they can be withheld
until a program's first use of them (extended feature disable, Intel SDM volume 1, 13.14), which
Bochs does not know.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def replace(path: Path, pattern: str, new: str, count: int = 1) -> None:
    """Replaces what a pattern finds in a file, as often as is expected."""
    text, n = re.subn(pattern, new, path.read_text(), flags=re.MULTILINE)
    if n != count:
        sys.exit(f"{path}: {pattern} was found {n} times, expected {count}: another Bochs?")
    path.write_text(text)


def mend_products(path: Path) -> None:
    """Signed bytes, x of DPBDSS and DPBDSU, y of DPBDSS and DPBDUS."""
    text = path.read_text()
    for name, signed in (("DPBDSS", "xy"), ("DPBDSU", "x"), ("DPBDUS", "y")):
        found = re.search(rf"Bit32u {name}\(.*?\n}}\n", text, re.DOTALL)
        if found is None:
            sys.exit(f"{path}: there is no {name}: another Bochs?")
        product = re.sub(r"Bit32[su](?=\([xy]byte)", "Bit32s", found[0])
        product = re.sub(rf"([{signed}]byte\[\d\])\)", r"Bit8s(\1))", product)
        text = text.replace(found[0], product)
    path.write_text(text)


def mend_saving(path: Path) -> None:
    """The places of a tile's rows and bytes a row (SDM volume 1, 3.7), 16 rows, tiles in use."""
    for wrong, right in (
        (r"(tilecfg\.vmm16u\(8\+n\) +=.*)\.rows;", r"\1.bytes_per_row;"),
        (r"(tilecfg\.vmmubyte\(48\+n\) =.*)\.bytes_per_row;", r"\1.rows;"),
        (r"tile_use_tracker == 0", "tile_use_tracker != 0"),
    ):
        replace(path, wrong, right)
    replace(path, r"row=0; row < BX_TILE_REGISTERS", "row=0; row < BX_TILE_MAX_ROWS", count=2)


def withhold_tiles(cpu: Path) -> None:
    """IA32_XFD and IA32_XFD_ERR (MSRs 0x1c4, 0x1c5), CPUID leaf 13, and the fault (#NM)."""
    replace(
        cpu / "cpuid.cc",
        r"^    // EBX\[31:00\] - The size \(in bytes\) of the XSAVE area .*IA32_XSS\)$",
        r"    leaf->eax |= is_cpu_extension_supported(BX_ISA_AMX) << 4;\n\n\g<0>",
    )
    replace(
        cpu / "cpuid.cc",
        r"^ *leaf->ecx = \(cpu->ia32_xss_suppmask & \(1 << subfunction\)\) != 0;$",
        r"\g<0>\n      leaf->ecx |= (subfunction == 18) << 2;",
    )
    for access, do in (
        ("rdmsr(Bit32u index, Bit64u *msr)", "*msr = *withheld(index)"),
        ("wrmsr(Bit32u index, Bit64u val_64)", "*withheld(index) = val_64, handleAvxModeChange()"),
    ):
        replace(
            cpu / "msr.cc",
            rf"^bool .*BX_CPU_C::handle_unknown_{re.escape(access)}\n{{$",
            r"extern Bit64u *withheld(Bit32u);\n\n\g<0>\n"
            rf"  if (withheld(index)) return {do}, true;",
        )
    replace(
        cpu / "proc_ctrl.cc",
        r"^void BX_CPU_C::handleAvxModeChange\(void\)$",
        "static Bit64u xfd, xfd_err;\n\nBit64u *withheld(Bit32u msr)\n{\n"
        "  return msr == 0x1c4 ? &xfd : msr == 0x1c5 ? &xfd_err : 0;\n}\n\n\\g<0>",
    )
    replace(
        cpu / "proc_ctrl.cc",
        r"\(BX_XCR0_XTILECFG_MASK \| BX_XCR0_XTILEDATA_MASK\)\) != 0",
        r"\g<0> || (xfd & BX_XCR0_XTILEDATA_MASK) != 0",
    )
    replace(
        cpu / "proc_ctrl.cc",
        r"^  if \(~.*BX_XCR0_XTILEDATA_MASK\)\)\n.*BX_UD_EXCEPTION, 0\);$",
        r"\g<0>\n\n  xfd_err |= xfd & BX_XCR0_XTILEDATA_MASK;\n"
        r"  if (xfd_err != 0) exception(BX_NM_EXCEPTION, 0);",
    )


def main() -> None:
    cpu = Path(sys.argv[1]) / "cpu"
    mend_products(cpu / "avx/amx.cc")
    mend_saving(cpu / "xsave.cc")
    withhold_tiles(cpu)


if __name__ == "__main__":
    main()
