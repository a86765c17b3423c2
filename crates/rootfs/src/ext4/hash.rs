//! The hash by which large directories are indexed: half of MD4 over the name, 32 bytes at a time.
//!
//! See the kernel's `fs/ext4/hash.c` (`half_md4_transform`, `str2hashbuf_unsigned`, `__ext4fs_dirhash`). There are two
//! forms, which differ in whether a byte above 0x7F counts as negative. Which one an image uses was once decided by
//! the machine that made it; here it is always the unsigned form, and the superblock says so
//! (`EXT2_FLAGS_UNSIGNED_HASH`).

/// A name's place in an indexed directory: names are ordered by `major`, which is always even, then by `minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NameHash {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// Marks the end of a directory for `readdir`, so no name may have it (`EXT4_HTREE_EOF_32BIT`).
const END_OF_DIRECTORY: u32 = 0x7fff_ffff << 1;

/// MD4's initial state (RFC 1320, section 3.3), used when the file system has no seed.
const INITIAL_STATE: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// Hashes a name with the seed of the superblock (`s_hash_seed`).
pub(super) fn half_md4(name: &[u8], seed: [u32; 4]) -> NameHash {
    let mut state = if seed == [0; 4] { INITIAL_STATE } else { seed };
    let mut rest = name;
    while !rest.is_empty() {
        transform(&mut state, &words_of(rest));
        rest = &rest[rest.len().min(32)..];
    }
    let major = state[1] & !1;
    NameHash {
        major: if major == END_OF_DIRECTORY {
            END_OF_DIRECTORY - 2
        } else {
            major
        },
        minor: state[2],
    }
}

/// The first 32 bytes as eight big-endian words; what is missing is filled with the number of bytes left in the name,
/// in every byte.
fn words_of(rest: &[u8]) -> [u32; 8] {
    let length = crate::ext4::format::position(rest.len());
    let half = length | (length << 8);
    let padding = half | (half << 16);
    let mut words = [padding; 8];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        *word = bytes
            .iter()
            .fold(padding, |value, byte| (value << 8).wrapping_add(u32::from(*byte)));
    }
    words
}

/// Three rounds of eight steps. Every step adds one word and a round constant to one of four variables and rotates it.
fn transform(state: &mut [u32; 4], words: &[u32; 8]) {
    /// Which word each step of a round takes.
    const ORDER: [[usize; 8]; 3] = [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [1, 3, 5, 7, 0, 2, 4, 6],
        [3, 7, 2, 6, 1, 5, 0, 4],
    ];
    /// How far the four steps of a round rotate.
    const ROTATION: [[u32; 4]; 3] = [[3, 7, 11, 19], [3, 5, 9, 13], [3, 9, 11, 15]];
    /// Nothing, and the square roots of 2 and 3, as in MD4.
    const CONSTANT: [u32; 3] = [0, 0x5A82_7999, 0x6ED9_EBA1];

    let [mut a, mut b, mut c, mut d] = *state;
    for round in 0..3 {
        for step in 0..8 {
            let mixed = match round {
                0 => d ^ (b & (c ^ d)),
                1 => (b & c).wrapping_add((b ^ c) & d),
                _ => b ^ c ^ d,
            };
            let sum = a
                .wrapping_add(mixed)
                .wrapping_add(words[ORDER[round][step]])
                .wrapping_add(CONSTANT[round]);
            // The variables change places after each step: a, d, c and b are the targets in turn.
            (a, b, c, d) = (d, sum.rotate_left(ROTATION[round][step % 4]), b, c);
        }
    }
    for (value, mixed) in state.iter_mut().zip([a, b, c, d]) {
        *value = value.wrapping_add(mixed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of `debugfs -R 'dx_hash -h 4 [-s SEED] NAME'` (e2fsprogs 1.47.0; 4 is unsigned half
    /// MD4). Names around the step of 32 bytes, and with high bytes.
    #[test]
    fn agrees_with_e2fsprogs() {
        // 00112233-4455-6677-8899-aabbccddeeff as four little-endian words.
        let seed = [0x3322_1100, 0x7766_5544, 0xbbaa_9988, 0xffee_ddcc];
        let cases: [(&[u8], [u32; 4], u32, u32); 10] = [
            (b"a", seed, 0x9375_2ee6, 0x578c_30ba),
            (b"a", [0; 4], 0xd5fa_7d7a, 0xacb4_8187),
            (b"hello", seed, 0x344c_a36e, 0x2ef1_6de2),
            (b"exactly-four-time", [0; 4], 0x17c6_c7a4, 0x184f_530f),
            (
                b"01234567890123456789012345678901",
                seed,
                0xcd52_496a,
                0x5755_13b3,
            ),
            (
                b"012345678901234567890123456789012345",
                seed,
                0xfd8a_ad0c,
                0xb4c6_5dbc,
            ),
            (
                b"012345678901234567890123456789012345",
                [0; 4],
                0x45a2_fe2a,
                0x7e8f_2590,
            ),
            (b"caf\xe9", seed, 0xb6d6_75e4, 0x92c6_b6e3),
            (b"\xff\xfe\xfd", seed, 0xfc1b_5b5e, 0x5296_0473),
            (b"\xff\xfe\xfd", [0; 4], 0x3d21_37a8, 0xb8fa_d82e),
        ];
        for (name, seed, major, minor) in cases {
            assert_eq!(
                half_md4(name, seed),
                NameHash { major, minor },
                "{}",
                name.escape_ascii()
            );
        }
    }
}
