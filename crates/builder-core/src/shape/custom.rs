//! The image's own init: which program that is, and what the kernel can hand to it.
//!
//! The kernel starts an init as root, in `/`, on the console, with `HOME=/` and `TERM=linux`. More variables and
//! arguments come from its command line: words `NAME=value` that it does not know itself become the environment, words
//! after `--` the arguments (`init/main.c`, `unknown_bootoption` and `set_init_arg`). That has limits, which stand here.

use std::collections::BTreeMap;

use oci_fetch::ImageConfig;

use super::{DEFAULT_PATH, command_line};
use crate::{
    error::{BuildError, BuildErrorKind},
    request::RuntimeOverrides,
};

/// `MAX_INIT_ARGS` of the kernel's `CONFIG_INIT_ENV_ARG_LIMIT`, less the two variables that it sets itself. One more
/// is a kernel panic.
const MAX_WORDS: usize = 30;

/// Bytes of a command line on x86-64 and aarch64 (`COMMAND_LINE_SIZE`), less room for what a VMM adds.
const MAX_COMMAND_LINE_BYTES: usize = 2048 - 256;

/// Where inits are, in this order, when neither the request nor the image's command names one.
const USUAL: [&str; 6] = [
    "/sbin/init",
    "/usr/sbin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/init",
    "/etc/init",
];

/// Names of programs that are made to be process 1: an image whose command is one of them means it.
const NAMES: [&str; 9] = [
    "init",
    "systemd",
    "runit",
    "runit-init",
    "openrc-init",
    "s6-svscan",
    "s6-linux-init",
    "dinit",
    "my_init",
];

/// A program that may be the init, and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) path: String,
    pub(super) arguments: Vec<String>,
}

/// Which programs may be the init, the best first; absolute paths.
pub(super) fn candidates(config: &ImageConfig, overrides: &RuntimeOverrides) -> Vec<Candidate> {
    let (entrypoint, command) = command_line(config, overrides);
    let words = [entrypoint, command].concat();
    let is_asked_for = !(overrides.entrypoint.is_empty() && overrides.command.is_empty());
    let named = words.split_first().filter(|(program, _)| {
        let name = program.rsplit('/').next().unwrap_or_default();
        is_asked_for || NAMES.contains(&name)
    });
    let mut candidates = Vec::new();
    if let Some((program, arguments)) = named {
        let path = overrides.environment.get("PATH").cloned().or_else(|| {
            let mut own = config.env.iter().filter_map(|entry| entry.strip_prefix("PATH="));
            own.next_back().map(str::to_owned)
        });
        let path = path.unwrap_or_else(|| DEFAULT_PATH.to_owned());
        let places: Vec<String> = if program.starts_with('/') {
            vec![program.clone()]
        } else if program.contains('/') {
            vec![format!("/{program}")]
        } else {
            let directories = path.split(':').filter(|directory| directory.starts_with('/'));
            directories
                .map(|directory| format!("{}/{program}", directory.trim_end_matches('/')))
                .collect()
        };
        candidates.extend(places.into_iter().map(|path| Candidate {
            path,
            arguments: arguments.to_vec(),
        }));
    }
    if !is_asked_for {
        candidates.extend(USUAL.map(|path| Candidate {
            path: path.to_owned(),
            arguments: Vec::new(),
        }));
    }
    candidates
}

/// That no candidate is a program.
pub(super) fn not_found(candidates: &[Candidate]) -> BuildError {
    let paths: Vec<&str> = candidates
        .iter()
        .map(|candidate| candidate.path.as_str())
        .collect();
    refused(
        "init_strategy",
        format!(
            "the image has no init of its own, not at {}: name one in runtime_config.entrypoint, or choose TINI for an image of \
             this machine's architecture",
            paths.join(", ")
        ),
    )
}

/// The command line: `base`, then what the init gets. Variables of the image that the kernel cannot pass on are left
/// out and given back by name; those of the request are refused.
pub(super) fn command_line_of(
    base: &str,
    init: &Candidate,
    env: &BTreeMap<String, String>,
    overrides: &RuntimeOverrides,
) -> Result<(String, Vec<String>), BuildError> {
    let cannot = |what: &str| {
        format!(
            "the kernel cannot hand {what} to the image's own init: its command line is short and knows no quotes"
        )
    };
    let path = quoted(&init.path).filter(|word| *word == init.path);
    let path = path.ok_or_else(|| refused("init_strategy", cannot("the init's path")))?;
    let mut line = format!("{base} init={path}");
    let mut arguments = String::new();
    for argument in &init.arguments {
        let word = quoted(argument).filter(|word| !word.is_empty());
        let word = word.ok_or_else(|| {
            refused(
                "runtime_config.command",
                cannot(&format!("the argument {argument:?}")),
            )
        })?;
        arguments.push(' ');
        arguments.push_str(&word);
    }
    if init.arguments.len() > MAX_WORDS || line.len() + arguments.len() > MAX_COMMAND_LINE_BYTES {
        return Err(refused(
            "runtime_config.command",
            cannot("so many or so long arguments"),
        ));
    }
    let mut left_out = Vec::new();
    let mut n_variables = 0;
    // The request's first: they are not to lose their place to the image's.
    let (asked, own): (Vec<_>, Vec<_>) = env
        .iter()
        .partition(|(name, _)| overrides.environment.contains_key(*name));
    for (name, value) in asked.into_iter().chain(own) {
        let word = quoted(value).filter(|_| is_plain(name));
        let word = word.map(|value| format!(" {name}={value}"));
        let fits = |word: &String| {
            n_variables < MAX_WORDS && line.len() + arguments.len() + word.len() + 3 <= MAX_COMMAND_LINE_BYTES
        };
        match word.filter(fits) {
            Some(word) => {
                line.push_str(&word);
                n_variables += 1;
            }
            None if overrides.environment.contains_key(name) => {
                return Err(refused(
                    "runtime_config.environment",
                    cannot(&format!("the variable {name:?}")),
                ));
            }
            None => left_out.push(name.clone()),
        }
    }
    if !arguments.is_empty() {
        line.push_str(" --");
        line.push_str(&arguments);
    }
    Ok((line, left_out))
}

/// Whether a name is one that the kernel neither takes for its own, all of which have a small letter, nor for a
/// module's, which have a dot.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// A word of the kernel's command line that means `text`, if there is one.
fn quoted(text: &str) -> Option<String> {
    if text.chars().any(|c| c == '"' || c.is_control()) || text == "--" {
        return None;
    }
    // The kernel's `isspace` goes by bytes and by Latin-1 (`lib/ctype.c`): 0xA0 ends a word, also within a letter of UTF-8.
    let ends_a_word = |byte: u8| byte == b' ' || byte == 0xa0;
    Some(
        if text.bytes().any(ends_a_word) || text.contains(char::is_whitespace) {
            format!("\"{text}\"")
        } else {
            text.to_owned()
        },
    )
}

fn refused(field: &'static str, message: impl std::fmt::Display) -> BuildError {
    let text = format!("{field}: {message}");
    BuildError::new(BuildErrorKind::InvalidArgument { field }, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn paths(candidates: &[Candidate]) -> Vec<&str> {
        candidates
            .iter()
            .map(|candidate| candidate.path.as_str())
            .collect()
    }

    #[test]
    fn the_init_is_the_requests_then_the_images_then_the_usual_one() {
        let mut config = ImageConfig::default();
        config.entrypoint = words(&["/init"]);
        config.cmd = words(&["serve"]);
        let none = RuntimeOverrides::default();
        let found = candidates(&config, &none);
        assert_eq!(found[0].path, "/init");
        assert_eq!(found[0].arguments, words(&["serve"]));
        assert_eq!(found[1].path, "/sbin/init");
        assert!(found[1].arguments.is_empty());

        config.entrypoint = words(&["bash"]);
        assert_eq!(paths(&candidates(&config, &none)), USUAL, "bash is no init");

        let asked = RuntimeOverrides {
            entrypoint: words(&["boot", "--now"]),
            environment: BTreeMap::from([("PATH".into(), "/opt:rel:/bin/".into())]),
            ..RuntimeOverrides::default()
        };
        let found = candidates(&config, &asked);
        assert_eq!(paths(&found), ["/opt/boot", "/bin/boot"], "and nothing else");
        assert_eq!(found[0].arguments, words(&["--now"]));
    }

    #[test]
    fn a_byte_that_the_kernel_takes_for_a_space_ends_no_word() {
        // U+00E0 is C3 A0: unquoted, `W=à` would end there and the rest be a parameter of the kernel's own.
        let init = Candidate {
            path: "/sbin/init".into(),
            arguments: words(&["voilà"]),
        };
        let env = BTreeMap::from([("W".to_owned(), "àpanic=77".to_owned())]);
        let none = RuntimeOverrides::default();
        let (line, left_out) = command_line_of("", &init, &env, &none).unwrap();
        assert_eq!(line, " init=/sbin/init W=\"àpanic=77\" -- \"voilà\"");
        assert!(left_out.is_empty());

        let init = Candidate {
            path: "/sbin/à".into(),
            arguments: Vec::new(),
        };
        assert!(command_line_of("", &init, &env, &none).is_err());
    }

    #[test]
    fn the_kernel_is_told_what_it_can_pass_on() {
        let init = Candidate {
            path: "/sbin/init".into(),
            arguments: words(&["--unit", "a b"]),
        };
        let env = BTreeMap::from(
            [
                ("LANG", "C.UTF-8"),
                ("GREETING", "hello you"),
                ("lower", "x"),
                ("Q", "\""),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let none = RuntimeOverrides::default();
        let (line, left_out) = command_line_of("root=/dev/vda", &init, &env, &none).unwrap();
        assert_eq!(
            line,
            "root=/dev/vda init=/sbin/init GREETING=\"hello you\" LANG=C.UTF-8 -- --unit \"a b\""
        );
        assert_eq!(left_out, ["Q", "lower"]);

        let asked = RuntimeOverrides {
            environment: BTreeMap::from([("lower".to_owned(), "x".to_owned())]),
            ..RuntimeOverrides::default()
        };
        let error = command_line_of("", &init, &env, &asked).unwrap_err();
        assert!(
            error.to_string().starts_with("runtime_config.environment: "),
            "{error}"
        );
    }

    #[test]
    fn the_kernels_limits_hold_whatever_the_image_says() {
        let init = Candidate {
            path: "/sbin/init".into(),
            arguments: Vec::new(),
        };
        let none = RuntimeOverrides::default();
        let many: BTreeMap<_, _> = (0..100).map(|i| (format!("V{i}"), "x".to_owned())).collect();
        let (line, left_out) = command_line_of("", &init, &many, &none).unwrap();
        assert_eq!(
            line.split(' ').filter(|word| word.starts_with('V')).count(),
            MAX_WORDS
        );
        assert_eq!(left_out.len(), 70);

        let long: BTreeMap<_, _> = (0..10).map(|i| (format!("V{i}"), "x".repeat(400))).collect();
        let (line, left_out) = command_line_of("", &init, &long, &none).unwrap();
        assert!(line.len() <= MAX_COMMAND_LINE_BYTES && !left_out.is_empty());

        for arguments in [
            vec!["x".to_owned(); 31],
            vec!["\"".to_owned()],
            vec!["--".to_owned()],
        ] {
            let init = Candidate {
                arguments,
                ..init.clone()
            };
            command_line_of("", &init, &BTreeMap::new(), &none).unwrap_err();
        }
    }
}
