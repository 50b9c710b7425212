//! Checks that a precompiled normalizer is safe to use on any text.
//!
//! Sentencepiece compiles its normalization rules into a double-array trie, which [`Precompiled`] follows without
//! checking bounds. An untrusted file is therefore checked here first, along every edge that a text can follow.
//!
//! # Source
//! `normalizer.cc` of google/sentencepiece (`Normalizer::DecodePrecompiledCharsMap`) for the layout: the trie's
//! length in bytes, the trie, then the replacements, each followed by a zero byte.

use tokenizers::normalizers::Precompiled;

/// Builds the normalizer after checking every transition and replacement that its trie can reach.
///
/// # Errors
/// A short description of the fault in `bytes`.
pub(super) fn precompiled(bytes: &[u8]) -> Result<Precompiled, String> {
    let (length, rest) = bytes.split_first_chunk().ok_or("its normalizer is truncated")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (trie, replacements) = rest.split_at_checked(length / 4 * 4).ok_or("its normalizer is truncated")?;
    let replacements = std::str::from_utf8(replacements).map_err(|_| "its normalizer is not UTF-8")?;
    let units: Vec<u32> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    if !is_sound(&units, replacements) {
        return Err("its normalizer points outside itself".into());
    }
    Precompiled::from(bytes).map_err(|error| error.to_string())
}

/// Whether every text stays inside the trie and leads only to replacements that exist.
fn is_sound(units: &[u32], replacements: &str) -> bool {
    let Some(&root) = units.first() else { return false };
    let mut seen = vec![false; units.len()];
    let mut nodes = vec![offset(root)];
    while let Some(node) = nodes.pop() {
        // The children of a node are in one aligned block of 256 units, at the positions of their bytes.
        let Some(block) = units.get(node & !0xff..(node | 0xff) + 1) else { return false };
        if std::mem::replace(&mut seen[node], true) {
            continue;
        }
        for (low, &unit) in block.iter().enumerate() {
            let byte = (low ^ node) & 0xff;
            if byte == 0 || label(unit) as usize != byte {
                continue;
            }
            let child = (node ^ byte) ^ offset(unit);
            if has_leaf(unit) {
                match units.get(child) {
                    Some(&leaf) if replacements.is_char_boundary(value(leaf)) => {}
                    _ => return false,
                }
            }
            nodes.push(child);
        }
    }
    true
}

fn has_leaf(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn value(unit: u32) -> usize {
    (unit & 0x7fff_ffff) as usize
}

fn label(unit: u32) -> u32 {
    unit & 0x8000_00ff
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & 1 << 9) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trie of two blocks: the root is in block 0, and `A` leads to block 1, whose first unit is the leaf.
    fn charsmap(leaf: u32, offset: u32, replacements: &[u8]) -> Vec<u8> {
        let mut units = vec![0u32; 512];
        units[b'A' as usize] = (offset ^ u32::from(b'A')) << 10 | 1 << 8 | u32::from(b'A');
        units[256] = leaf;
        let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        [&(trie.len() as u32).to_le_bytes(), trie.as_slice(), replacements].concat()
    }

    #[test]
    fn follows_a_rule() {
        let normalizer = precompiled(&charsmap(1, 256, b"\0bc\0")).unwrap();
        assert_eq!(normalizer.normalize_string("xAA"), "xbcbc");
    }

    #[test]
    fn refuses_tries_that_would_panic_later() {
        let error = |bytes: &[u8]| precompiled(bytes).unwrap_err();
        assert_eq!(error(b"abc"), "its normalizer is truncated");
        assert_eq!(error(&[0xff; 64]), "its normalizer is truncated");
        assert_eq!(error(&[0; 4]), "its normalizer points outside itself");
        assert_eq!(error(&charsmap(9, 256, b"\0bc\0")), "its normalizer points outside itself");
        assert_eq!(error(&charsmap(1, 1024, b"\0bc\0")), "its normalizer points outside itself");
        // The replacement would start in the middle of a character.
        assert_eq!(error(&charsmap(1, 256, "é\0".as_bytes())), "its normalizer points outside itself");
        assert_eq!(error(&charsmap(0, 256, b"\xff\0")), "its normalizer is not UTF-8");
    }

    #[test]
    fn a_cycle_ends() {
        // `A` leads back to the root's own block.
        assert!(precompiled(&charsmap(0, 0, b"x\0")).is_ok());
    }
}
