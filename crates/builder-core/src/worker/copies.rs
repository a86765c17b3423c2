//! The list of what belongs where in an image, from the worker that has planned it to the parent that copies it.
//!
//! A file without a name, 32 bytes for each range: number of the layer, offset in its pack, offset in the image, length;
//! each in eight bytes, little endian, ascending in the image.

use std::io::{self, Write};
#[cfg(feature = "service")]
use std::{fs::File, os::unix::fs::FileExt as _};

use rootfs::ext4::BodyCopy;
#[cfg(feature = "service")]
use rootfs::pack::{BLOCK_SIZE, PackId};

/// Ranges of a list. What is beyond, the worker copies itself.
pub(super) const MAX_COPIES: usize = 1 << 18;

#[cfg(feature = "service")]
const COPY_BYTES: usize = 32;

/// Writes a list of at most [`MAX_COPIES`]. The packs are numbered as the layers are.
pub(super) fn write(copies: &[BodyCopy], mut to: impl Write) -> io::Result<()> {
    for copy in copies {
        let layer = u64::from(copy.pack.0);
        for number in [layer, copy.pack_offset, copy.image_offset, copy.length] {
            to.write_all(&number.to_le_bytes())?;
        }
    }
    to.flush()
}

/// Reads a list back, as the hostile input that it may be. What comes back lies within packs of these lengths and within
/// an image of that length, on whole blocks, ascending in the image and without overlaps there.
///
/// # Errors
/// What is wrong with it, in words.
#[cfg(feature = "service")]
pub(crate) fn read(
    file: &File,
    count: u64,
    pack_bytes: &[u64],
    image_bytes: u64,
) -> Result<Vec<BodyCopy>, String> {
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= MAX_COPIES)
        .ok_or_else(|| format!("{count} ranges to copy, at most {MAX_COPIES} are possible"))?;
    let mut bytes = vec![0; count * COPY_BYTES];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|error| format!("the ranges to copy cannot be read: {error}"))?;
    let mut copies = Vec::with_capacity(count);
    let mut free_from = 0;
    for range in bytes.as_chunks::<COPY_BYTES>().0 {
        let number = |nth: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&range[8 * nth..8 * nth + 8]);
            u64::from_le_bytes(number)
        };
        let (layer, pack_offset, image_offset, length) = (number(0), number(1), number(2), number(3));
        let pack = usize::try_from(layer)
            .ok()
            .and_then(|layer| pack_bytes.get(layer));
        let is_within = |start: u64, whole: u64| start.checked_add(length).is_some_and(|end| end <= whole);
        let is_whole = [pack_offset, image_offset, length]
            .iter()
            .all(|number| number.is_multiple_of(BLOCK_SIZE));
        let is_sound = pack.is_some_and(|bytes| is_within(pack_offset, *bytes))
            && is_within(image_offset, image_bytes)
            && image_offset >= free_from
            && length > 0
            && is_whole;
        if !is_sound {
            return Err(format!(
                "a range to copy is not possible: layer {layer}, {pack_offset} to {image_offset}, {length} bytes"
            ));
        }
        free_from = image_offset + length;
        copies.push(BodyCopy {
            pack: PackId(u32::try_from(layer).map_err(|error| error.to_string())?),
            pack_offset,
            image_offset,
            length,
        });
    }
    Ok(copies)
}

#[cfg(test)]
#[cfg(feature = "service")]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_SIZE;

    fn copy(layer: u32, pack_offset: u64, image_offset: u64, length: u64) -> BodyCopy {
        BodyCopy {
            pack: PackId(layer),
            pack_offset,
            image_offset,
            length,
        }
    }

    /// Two packs of four blocks, an image of ten.
    fn there_and_back(copies: &[BodyCopy], count: u64) -> Result<Vec<BodyCopy>, String> {
        let file = tempfile::tempfile().unwrap();
        write(copies, &file).unwrap();
        read(&file, count, &[4 * BLOCK, 4 * BLOCK], 10 * BLOCK)
    }

    #[test]
    fn a_list_comes_back_as_it_was() {
        let copies = [
            copy(1, BLOCK, 0, 3 * BLOCK),
            copy(0, 0, 3 * BLOCK, BLOCK),
            copy(0, 0, 9 * BLOCK, BLOCK),
        ];
        assert_eq!(there_and_back(&copies, 3).unwrap(), copies);
        assert_eq!(there_and_back(&[], 0).unwrap(), []);
    }

    #[test]
    fn what_leads_outside_is_refused() {
        for (name, copies, count) in [
            ("no such layer", vec![copy(2, 0, 0, BLOCK)], 1),
            ("beyond the pack", vec![copy(0, BLOCK, 0, 4 * BLOCK)], 1),
            ("beyond the image", vec![copy(0, 0, 9 * BLOCK, 2 * BLOCK)], 1),
            (
                "around the end of the numbers",
                vec![copy(0, BLOCK, BLOCK, u64::MAX - BLOCK + 1)],
                1,
            ),
            (
                "an offset around the end",
                vec![copy(0, u64::MAX - BLOCK + 1, 0, BLOCK)],
                1,
            ),
            ("nothing", vec![copy(0, 0, 0, 0)], 1),
            ("half a block of the pack", vec![copy(0, 512, 0, BLOCK)], 1),
            ("half a block of the image", vec![copy(0, 0, 512, BLOCK)], 1),
            ("half a block", vec![copy(0, 0, 0, 512)], 1),
            (
                "twice the same place",
                vec![copy(0, 0, 0, BLOCK), copy(1, 0, 0, BLOCK)],
                2,
            ),
            (
                "backwards",
                vec![copy(0, 0, BLOCK, BLOCK), copy(0, 0, 0, BLOCK)],
                2,
            ),
            ("fewer than said", vec![copy(0, 0, 0, BLOCK)], 2),
            ("too many", vec![], MAX_COPIES as u64 + 1),
            ("far too many", vec![], u64::MAX),
        ] {
            assert!(there_and_back(&copies, count).is_err(), "{name}");
        }
    }
}
