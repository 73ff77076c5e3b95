//! How the blocks of a format are laid out on the device: split into planes, so that each part of a block stands at aligned
//! addresses.

use crate::quant::BlockType;

/// Where planes begin.
pub const ALIGNMENT: usize = 256;

/// A plane: the same bytes of every block, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Of its first byte in a block of the file.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

const fn plane(offset: usize, len: usize) -> Plane {
    Plane { offset, len }
}

/// The kernels' number for a format (`enum Format` of blocks.cuh) and its planes; none for what they do not know.
pub fn layout(kind: BlockType) -> Option<(i32, &'static [Plane])> {
    // blocks of 144 and 176 bytes are aligned as they are
    let (format, planes): (i32, &[Plane]) = match kind {
        BlockType::Q4_0 => (0, const { &[plane(2, 16), plane(0, 2)] }),
        BlockType::Q4_1 => (1, const { &[plane(4, 16), plane(0, 4)] }),
        BlockType::Q5_0 => (2, const { &[plane(6, 16), plane(2, 4), plane(0, 2)] }),
        BlockType::Q5_1 => (3, const { &[plane(8, 16), plane(4, 4), plane(0, 4)] }),
        BlockType::Q8_0 => (4, const { &[plane(2, 32), plane(0, 2)] }),
        BlockType::Q2_K => (5, const { &[plane(0, 16), plane(16, 64), plane(80, 4)] }),
        BlockType::Q3_K => (6, const { &[plane(0, 32), plane(32, 64), plane(96, 12), plane(108, 2)] }),
        BlockType::Q4_K => (7, const { &[plane(0, 144)] }),
        BlockType::Q5_K => (8, const { &[plane(0, 176)] }),
        BlockType::Q6_K => (9, const { &[plane(0, 128), plane(128, 64), plane(192, 16), plane(208, 2)] }),
        _ => return None,
    };
    Some((format, planes))
}

/// Bytes of a block, by the kernels' number of its format.
pub fn block_bytes(format: i32) -> usize {
    let known = |kind: &BlockType| layout(*kind).is_some_and(|(number, _)| number == format);
    BlockType::ALL.iter().find(|kind| known(kind)).map_or(1, |kind| kind.block_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_hold_every_byte_of_a_block_once() {
        let known = BlockType::ALL.into_iter().filter_map(|kind| Some((kind, layout(kind)?.1)));
        let mut count = 0;
        for (kind, planes) in known {
            let mut seen = vec![0; kind.block_bytes()];
            planes.iter().for_each(|p| seen[p.offset..][..p.len].iter_mut().for_each(|n| *n += 1));
            assert!(seen.iter().all(|&n| n == 1), "{kind}: {seen:?}");
            count += 1;
        }
        assert_eq!(count, 10);
    }
}
