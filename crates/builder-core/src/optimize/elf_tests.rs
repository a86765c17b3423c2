use proptest::prelude::*;

use super::*;

impl ReadAt for &[u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start + buffer.len();
        buffer.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// What a plan makes of a file.
fn carry_out(file: &[u8], plan: &Plan) -> Vec<u8> {
    let mut result = vec![0; usize::try_from(plan.size).unwrap()];
    let place = |at: u64| usize::try_from(at).unwrap();
    for piece in &plan.pieces {
        let from = &file[place(piece.from)..place(piece.from + piece.length)];
        result[place(piece.to)..place(piece.to + piece.length)].copy_from_slice(from);
    }
    for patch in &plan.patches {
        result[place(patch.at)..place(patch.at) + patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
    result
}

fn left(file: &[u8]) -> Left {
    match plan(&file) {
        Err(NoPlan::Left(left)) => left,
        other => panic!("{other:?}"),
    }
}

/// A section of a made-up program.
struct Made {
    name: &'static str,
    kind: u64,
    flags: u64,
    content: Vec<u8>,
}

fn made(name: &'static str, kind: u64, flags: u64, content: &[u8]) -> Made {
    Made {
        name,
        kind,
        flags,
        content: content.to_vec(),
    }
}

/// A program with one segment that covers its headers and loaded sections, as a linker lays it out.
fn program(form: Form, sections: &[Made]) -> Vec<u8> {
    let word = form.word();
    let (header_bytes, segment_bytes, entry_bytes) =
        (form.pick(52, 64), form.pick(32, 56), form.pick(40, 64));
    let mut names = vec![0];
    let mut file = vec![0; header_bytes + segment_bytes];
    let mut entries = vec![0; entry_bytes];
    let mut loaded_end = file.len();
    let mut write_entry = |name: usize, kind: u64, flags: u64, offset: usize, length: usize| {
        let mut entry = Vec::new();
        entry.extend(form.bytes(name as u64, 4));
        entry.extend(form.bytes(kind, 4));
        for value in [flags, 0, offset as u64, length as u64] {
            entry.extend(form.bytes(value, word));
        }
        entry.extend([0; 8]);
        entry.extend(form.bytes(4, word));
        entry.extend(form.bytes(0, word));
        assert_eq!(entry.len(), entry_bytes);
        entries.extend(entry);
    };
    for section in sections {
        let name = names.len();
        names.extend(section.name.as_bytes());
        names.push(0);
        file.resize(file.len().next_multiple_of(4), 0);
        let offset = file.len();
        file.extend(&section.content);
        if section.flags & ALLOC != 0 {
            loaded_end = file.len();
        }
        write_entry(name, section.kind, section.flags, offset, section.content.len());
    }
    let name = names.len();
    names.extend(b".shstrtab\0");
    file.resize(file.len().next_multiple_of(4), 0);
    let offset = file.len();
    file.extend(&names);
    write_entry(name, 3, 0, offset, names.len());
    file.resize(file.len().next_multiple_of(8), 0);
    let table = file.len();
    let n_entries = entries.len() / entry_bytes;
    file.extend(entries);

    let mut put = |at: usize, value: u64, width: usize| {
        file[at..at + width].copy_from_slice(&form.bytes(value, width));
    };
    put(16, 2, 2);
    put(form.pick(28, 32), header_bytes as u64, word);
    put(form.pick(32, 40), table as u64, word);
    for (at, value) in [
        (form.pick(40, 52), header_bytes),
        (form.pick(42, 54), segment_bytes),
        (form.pick(44, 56), 1),
        (form.pick(46, 58), entry_bytes),
        (form.pick(48, 60), n_entries),
        (form.pick(50, 62), n_entries - 1),
    ] {
        put(at, value as u64, 2);
    }
    put(header_bytes + form.pick(16, 32), loaded_end as u64, word);
    file[..6].copy_from_slice(&[
        0x7f,
        b'E',
        b'L',
        b'F',
        if form.is_64 { 2 } else { 1 },
        if form.is_little { 1 } else { 2 },
    ]);
    file
}

const FORMS: [Form; 4] = [
    Form {
        is_64: true,
        is_little: true,
    },
    Form {
        is_64: true,
        is_little: false,
    },
    Form {
        is_64: false,
        is_little: true,
    },
    Form {
        is_64: false,
        is_little: false,
    },
];

fn usual() -> Vec<Made> {
    vec![
        made(".text", 1, 6, &[0x90; 1000]),
        made(".debug_gdb_scripts", 1, 2, b"loaded, so it stays"),
        made(".comment", 1, 0, b"compiler"),
        made(".debug_info", 1, 0, &[7; 5000]),
        made(".rela.debug_info", 4, 0, &[8; 480]),
        made(".symtab", 2, 0, &[9; 240]),
        made(".debug_str", 1, 0, &[7; 300]),
        made(".strtab", 3, 0, b"\0main\0"),
    ]
}

#[test]
fn what_debuggers_read_goes_and_all_else_keeps_its_content() {
    for form in FORMS {
        let file = program(form, &usual());
        let plan = plan(&file.as_slice()).unwrap();
        let result = carry_out(&file, &plan);
        assert!(
            result.len() + 5700 < file.len(),
            "{} of {}",
            result.len(),
            file.len()
        );

        let file = result.as_slice();
        let header = header(&file).unwrap();
        let table = read(
            &file,
            header.section_headers.offset,
            header.section_headers.length(),
        )
        .unwrap();
        let sections = sections(&header, &table, file.size()).unwrap();
        // As many as before, so that nothing that counts them is wrong.
        assert_eq!(sections.len(), usual().len() + 2);
        for (section, before) in sections[1..].iter().zip(usual()) {
            let is_gone = (before.name.contains("debug_info")) || before.name == ".debug_str";
            assert_eq!(section.kind == 0, is_gone, "{}", before.name);
            if !is_gone {
                let content = read(&file, section.offset, section.length).unwrap();
                assert_eq!(content, before.content, "{}", before.name);
            }
        }
        assert_eq!(left(file), Left::NothingToRemove, "once is enough");
    }
}

#[test]
fn what_is_odd_stays_as_it_is() {
    let form = FORMS[0];
    let file = program(form, &usual());
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = file.clone();
        change(&mut file);
        left(&file)
    };
    let cases: Vec<(&str, Left, Left)> = vec![
        (
            "script",
            left(b"#!/bin/sh\nexit 0\n########################################"),
            Left::NotElf,
        ),
        ("short", left(b"\x7fELF"), Left::NotElf),
        (
            "archive behind it",
            changed(&|file| file.extend(b"PK\x05\x06")),
            Left::Payload,
        ),
        ("object file", changed(&|file| file[16] = 1), Left::OtherKind),
        ("class", changed(&|file| file[4] = 3), Left::Malformed),
        (
            "table beyond the end",
            changed(&|file| file[40..48].fill(0x7f)),
            Left::Malformed,
        ),
        (
            "segment beyond the end",
            changed(&|file| file[64 + 32..64 + 40].fill(0x7f)),
            Left::Malformed,
        ),
        (
            "no table",
            changed(&|file| file[40..48].fill(0)),
            Left::NothingToRemove,
        ),
        ("no names", changed(&|file| file[62] = 200), Left::Malformed),
        (
            "program headers of another size",
            changed(&|file| file[54] = 57),
            Left::UnusualLayout,
        ),
        (
            "sections that overlap",
            changed(&|file| {
                let table = usize::try_from(form.number(file, 40, 8)).unwrap();
                // .comment, third after the empty one, becomes longer than its place.
                file[table + 3 * 64 + 32] = 0xff;
            }),
            Left::UnusualLayout,
        ),
        (
            "nothing for debuggers",
            left(&program(
                form,
                &[made(".text", 1, 6, b"code"), made(".comment", 1, 0, b"c")],
            )),
            Left::NothingToRemove,
        ),
    ];
    for (name, found, expected) in cases {
        assert_eq!(found, expected, "{name}");
    }
}

/// Whether a result can be what the file was: every loaded byte in its place.
fn assert_sound(file: &[u8], plan: &Plan) {
    assert!(plan.size < file.len() as u64);
    let result = carry_out(file, plan);
    let first = plan.pieces[0];
    assert_eq!((first.from, first.to), (0, 0));
    let fixed = usize::try_from(first.length).unwrap();
    let table = 32..48;
    for at in (0..fixed).filter(|at| !table.contains(at)) {
        assert_eq!(result[at], file[at], "byte {at}");
    }
    assert!(plan.pieces.is_sorted_by_key(|piece| piece.to));
}

proptest! {
    #[test]
    fn damaged_programs_are_understood_or_left(
        form in 0_usize..4,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = program(FORMS[form], &usual());
        for (place, byte) in damage {
            // Where headers are: at both ends.
            let at = place.index(700 + 64);
            let at = if at < 64 + 56 { at } else { file.len() - 1 - (at - 120) };
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        if let Ok(plan) = plan(&file.as_slice()) {
            assert_sound(&file, &plan);
        }
    }

    #[test]
    fn random_bytes_behind_the_magic_are_left(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.extend(bytes);
        if let Ok(plan) = plan(&file.as_slice()) {
            assert_sound(&file, &plan);
        }
    }
}

/// Tests run with debug information, so there is a program to try it on.
#[test]
fn this_program_still_runs_without_its_debug_information() {
    let itself = std::fs::read("/proc/self/exe").unwrap();
    let plan = match plan(&itself.as_slice()) {
        Ok(plan) => plan,
        // Built without any.
        Err(NoPlan::Left(Left::NothingToRemove)) => return,
        Err(error) => panic!("{error:?}"),
    };
    assert_sound(&itself, &plan);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stripped");
    std::fs::write(&path, carry_out(&itself, &plan)).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // A thread of another test may fork while the file is open for writing: execve answers ETXTBSY until that child
    // has ended or become something else.
    let output = (0..1000)
        .find_map(
            |_| match std::process::Command::new(&path).arg("--list").output() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    std::thread::yield_now();
                    None
                }
                result => Some(result.unwrap()),
            },
        )
        .unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("this_program_still_runs"));
}
