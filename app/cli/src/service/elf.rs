//! Whether a program is static: an ELF file without a `PT_INTERP` program header needs no dynamic linker (elf(5)).

const PT_INTERP: u32 = 3;

/// `None` if `file` is not a complete 64-bit little-endian ELF file.
pub(super) fn is_static(file: &[u8]) -> Option<bool> {
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let offset = usize::try_from(u64::from_le_bytes(field(file, 32)?)).ok()?;
    let size = usize::from(u16::from_le_bytes(field(file, 54)?));
    let count = usize::from(u16::from_le_bytes(field(file, 56)?));
    for i in 0..count {
        let at = offset.checked_add(i.checked_mul(size)?)?;
        if u32::from_le_bytes(field(file, at)?) == PT_INTERP {
            return Some(false);
        }
    }
    Some(true)
}

fn field<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&(kinds.len() as u16).to_le_bytes());
        for kind in kinds {
            file.extend(kind.to_le_bytes());
            file.extend([0; 52]);
        }
        file
    }

    #[test]
    fn programs_with_an_interpreter_are_not_static() {
        assert_eq!(is_static(&elf(&[1, 2])), Some(true));
        assert_eq!(is_static(&elf(&[1, 3, 2])), Some(false));
        assert_eq!(is_static(b"#!/bin/sh\n"), None);
        let whole = elf(&[1, 3]);
        for cut in 0..whole.len() - 52 {
            assert_eq!(is_static(&whole[..cut]), None, "{cut}");
        }
        let mut wild = elf(&[1]);
        wild[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(is_static(&wild), None);
    }

    #[test]
    fn this_test_is_static_only_if_built_so() {
        let me = std::fs::read("/proc/self/exe").expect("our own file");
        assert_eq!(is_static(&me), Some(cfg!(target_feature = "crt-static")));
    }
}
