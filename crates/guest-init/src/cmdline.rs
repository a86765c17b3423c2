//! What the kernel command line says to process 1.
//!
//! The kernel hands unknown words to process 1 by itself, as arguments and environment, but not all of them: a name with
//! a dot is taken for a module parameter and dropped, and there is room for 32. So `/proc/cmdline` is read instead, by
//! the kernel's own rules (`next_arg` in `lib/cmdline.c`).

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

/// The words that concern process 1; all others are ignored. Of a word that is given twice, the last one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelArguments {
    /// `env.KEY=VALUE`, in the order given; KEY is not empty.
    pub environment: Vec<(OsString, OsString)>,
    /// `workdir=DIR`.
    pub working_directory: Option<PathBuf>,
    /// `hostname=NAME`.
    pub hostname: Option<OsString>,
    /// `guest-init.log=LEVEL`; another word than those of [`LogLevel`] is the default.
    pub log: LogLevel,
    /// `ip=…`, as it stands there; see [`crate::network`].
    pub network: Option<OsString>,
    /// Everything after the first `--`; `None` without one, or with nothing after it.
    pub command: Option<Vec<OsString>>,
}

/// How much is said on the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// `quiet`: how the command has ended, or why it could not be run.
    Quiet,
    /// `default`: what fails besides.
    #[default]
    Default,
    /// `verbose`: one line for each step.
    Verbose,
}

impl LogLevel {
    fn parse(value: Option<&[u8]>) -> Self {
        match value {
            Some(b"quiet") => Self::Quiet,
            Some(b"verbose") => Self::Verbose,
            _ => Self::Default,
        }
    }
}

/// A word: a name and, after the first `=` that is not at its beginning, a value.
struct Word<'line> {
    name: &'line [u8],
    value: Option<&'line [u8]>,
}

impl KernelArguments {
    /// Reads a kernel command line. Every input has a meaning, as it has for the kernel.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        let mut result = Self::default();
        let mut rest = line;
        while let Some(word) = next_word(&mut rest) {
            match (word.name, word.value) {
                (b"--", None) => {
                    result.command = command(rest);
                    break;
                }
                (b"workdir", Some(value)) if !value.is_empty() => {
                    result.working_directory = Some(PathBuf::from(OsStr::from_bytes(value)));
                }
                (b"hostname", Some(value)) if !value.is_empty() => {
                    result.hostname = Some(OsStr::from_bytes(value).to_owned());
                }
                (b"ip", Some(value)) if !value.is_empty() => {
                    result.network = Some(OsStr::from_bytes(value).to_owned());
                }
                (b"guest-init.log", value) => result.log = LogLevel::parse(value),
                (name, Some(value)) => {
                    if let Some(name) = name.strip_prefix(b"env.").filter(|name| !name.is_empty()) {
                        let value = OsStr::from_bytes(value).to_owned();
                        result
                            .environment
                            .push((OsStr::from_bytes(name).to_owned(), value));
                    }
                }
                (_, None) => {}
            }
        }
        result
    }
}

fn command(mut rest: &[u8]) -> Option<Vec<OsString>> {
    let mut command = Vec::new();
    while let Some(Word { name, value }) = next_word(&mut rest) {
        let mut argument = name.to_vec();
        if let Some(value) = value {
            argument.push(b'=');
            argument.extend_from_slice(value);
        }
        command.push(OsString::from_vec(argument));
    }
    (!command.is_empty()).then_some(command)
}

/// Takes the next word off `rest`.
///
/// White space inside double quotes does not end a word. Quotes are dropped where they enclose the word or its value and
/// kept everywhere else.
fn next_word<'line>(rest: &mut &'line [u8]) -> Option<Word<'line>> {
    let start = rest.iter().position(|&byte| !is_space(byte))?;
    let mut text = rest.get(start..)?;
    let enclosed = text.first() == Some(&b'"');
    if enclosed {
        text = text.get(1..)?;
    }
    let mut in_quotes = enclosed;
    let mut equals = None;
    let mut end = text.len();
    for (index, &byte) in text.iter().enumerate() {
        match byte {
            b'"' => in_quotes = !in_quotes,
            b'=' if equals.is_none() && index > 0 => equals = Some(index),
            byte if is_space(byte) && !in_quotes => {
                end = index;
                break;
            }
            _ => {}
        }
    }
    let (mut word, after) = text.split_at(end);
    *rest = after;
    let Some(equals) = equals else {
        if enclosed {
            word = word.strip_suffix(b"\"").unwrap_or(word);
        }
        return Some(Word {
            name: word,
            value: None,
        });
    };
    let (name, value) = word.split_at(equals);
    let mut value = value.get(1..)?;
    let quoted_value = value.first() == Some(&b'"');
    if quoted_value {
        value = value.get(1..)?;
    }
    if quoted_value || enclosed {
        value = value.strip_suffix(b"\"").unwrap_or(value);
    }
    Some(Word {
        name,
        value: Some(value),
    })
}

fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn os(text: &str) -> OsString {
        OsString::from(text)
    }

    #[test]
    fn words_are_split_as_the_kernel_splits_them() {
        type Words = &'static [(&'static str, Option<&'static str>)];
        let cases: [(&str, &str, Words); 10] = [
            ("plain", "a b=c", &[("a", None), ("b", Some("c"))]),
            ("spaces of all kinds", "  a\t\nb ", &[("a", None), ("b", None)]),
            ("quoted value", "a=\"b c\" d", &[("a", Some("b c")), ("d", None)]),
            ("quoted word", "\"a=b c\" d", &[("a", Some("b c")), ("d", None)]),
            ("quoted word without value", "\"b c\"", &[("b c", None)]),
            ("quote inside", "a=b\"c d\"e", &[("a", Some("b\"c d\"e"))]),
            ("open quote", "a=\"b c", &[("a", Some("b c"))]),
            ("second equals sign", "a=b=c", &[("a", Some("b=c"))]),
            ("equals sign first", "=a", &[("=a", None)]),
            ("empty value", "a=", &[("a", Some(""))]),
        ];
        for (name, line, expected) in cases {
            let mut rest = line.as_bytes();
            let mut words = Vec::new();
            while let Some(Word { name, value }) = next_word(&mut rest) {
                words.push((
                    str::from_utf8(name).unwrap(),
                    value.map(|value| str::from_utf8(value).unwrap()),
                ));
            }
            assert_eq!(words, expected, "{name}");
        }
    }

    #[test]
    fn what_concerns_process_1_is_found_among_the_rest() {
        let line =
            b"console=ttyS0 reboot=k env.A=1 root=/dev/vda env.B=\"two words\" workdir=/srv hostname=box \
                     env.=x env.A=2 guest-init.log=verbose -- /bin/sh -c \"echo a=b; exit 3\" x=\"y z\" --";
        let expected = KernelArguments {
            environment: vec![(os("A"), os("1")), (os("B"), os("two words")), (os("A"), os("2"))],
            working_directory: Some("/srv".into()),
            hostname: Some(os("box")),
            log: LogLevel::Verbose,
            network: None,
            command: Some(
                ["/bin/sh", "-c", "echo a=b; exit 3", "x=y z", "--"]
                    .map(os)
                    .to_vec(),
            ),
        };
        assert_eq!(KernelArguments::parse(line), expected);
    }

    #[test]
    fn the_level_is_one_of_three_words() {
        for (line, expected) in [
            ("", LogLevel::Default),
            ("guest-init.log=quiet", LogLevel::Quiet),
            ("guest-init.log=default", LogLevel::Default),
            ("guest-init.log=verbose", LogLevel::Verbose),
            ("guest-init.log=other guest-init.log", LogLevel::Default),
            ("guest-init.log=verbose guest-init.log=quiet", LogLevel::Quiet),
        ] {
            assert_eq!(KernelArguments::parse(line.as_bytes()).log, expected, "{line}");
        }
    }

    #[test]
    fn words_after_the_separator_configure_nothing() {
        let arguments = KernelArguments::parse(b"-- env.A=1 workdir=/x");
        assert_eq!(arguments.command, Some(vec![os("env.A=1"), os("workdir=/x")]));
        assert_eq!(
            (arguments.environment.len(), arguments.working_directory),
            (0, None)
        );
    }

    #[test]
    fn a_separator_with_nothing_behind_it_is_no_command() {
        for line in ["", "--", "quiet -- \n", "--x", "--=y"] {
            assert_eq!(KernelArguments::parse(line.as_bytes()).command, None, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn every_line_has_a_meaning(line in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = KernelArguments::parse(&line);
        }

        #[test]
        fn every_line_of_likely_characters_has_a_meaning(line in "[a-c=\". -]{0,60}") {
            let arguments = KernelArguments::parse(line.as_bytes());
            prop_assert!(arguments.command.is_none_or(|command| !command.is_empty()));
        }
    }
}
