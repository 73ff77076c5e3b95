//! Changes in what is whole.

/// Edits of four bytes: where (two bytes), what (overwrite, insert, take out), and a byte or how many.
pub fn edited(whole: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for &[low, high, what, value] in edits.as_chunks::<4>().0 {
        let at = usize::from(u16::from_le_bytes([low, high])) % (bytes.len() + 1);
        match what % 3 {
            0 if at < bytes.len() => bytes[at] = value,
            2 => drop(bytes.drain(at..bytes.len().min(at + usize::from(value)))),
            _ => bytes.insert(at, value),
        }
    }
    bytes
}
