//! What a setting is.

/// What every variable of the daemon begins with.
pub const VARIABLE_PREFIX: &str = "UNKEY_BUILDERD_";

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name, as `PULL_TIMEOUT`; variable and flag derive from it.
    pub name: &'static str,
    /// Its value when nothing is given, in the form in which it would be given; empty for none.
    pub default: &'static str,
    /// Its value under `--dev` when nothing is given; `None` for the same as in production.
    pub development: Option<&'static str>,
    /// What values look like.
    pub form: Form,
    /// What becomes of it.
    pub effect: Effect,
    /// Whether the value must never be shown.
    pub secret: bool,
    /// One line for people.
    pub help: &'static str,
}

impl Setting {
    /// The variable, as `UNKEY_BUILDERD_PULL_TIMEOUT`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.name)
    }

    /// The flag without its dashes, as `pull-timeout`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }
}

/// What values of a setting look like.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Anything.
    Text,
    /// `true` or `false`.
    Bool,
    /// A whole number, bounds included.
    Integer {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A number from 0 to 1.
    Ratio,
    /// A duration as Go spells it.
    Duration {
        /// Whether zero is one.
        zero: bool,
    },
    /// A path.
    Path,
    /// An IP address.
    Address,
    /// `http://` or `https://` and a host.
    Url,
    /// Names with commas between them.
    List,
    /// One of these words.
    Word(&'static [&'static str]),
}

impl Form {
    /// Completes "expected …".
    #[must_use]
    pub fn expected(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Integer { min, max: u64::MAX } => format!("a whole number of at least {min}"),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Ratio => "a number from 0 to 1, as 0.25".to_owned(),
            Self::Duration { zero: true } => "a duration, as 15m, 1h30m or 0".to_owned(),
            Self::Duration { zero: false } => "a duration above zero, as 15m or 1h30m".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Address => "an IP address, as 127.0.0.1 or ::1".to_owned(),
            Self::Url => "a URL, as http://127.0.0.1:8083".to_owned(),
            Self::List => "names with commas between them, as docker.io,ghcr.io".to_owned(),
            Self::Word(words) => match words {
                [only] => (*only).to_owned(),
                [first @ .., last] => format!("{} or {last}", first.join(", ")),
                [] => "nothing".to_owned(),
            },
        }
    }
}

/// What becomes of a setting.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// It does what its help says.
    Works,
    /// Some values work; [`super::Config`] refuses the others with a reason.
    Partial,
    /// Nothing yet: only the value of the default is taken, since that is what happens anyway. The text says why, and
    /// what to do instead where there is something.
    NotYet(&'static str),
    /// The remote client's, which shares the prefix: the daemon has no use for it and does not mind it.
    Client,
}

/// A setting that does what its help says, and has the same default everywhere.
pub(super) const fn works(
    name: &'static str,
    default: &'static str,
    form: Form,
    help: &'static str,
) -> Setting {
    Setting {
        name,
        default,
        development: None,
        form,
        effect: Effect::Works,
        secret: false,
        help,
    }
}

impl Setting {
    pub(super) const fn in_development(mut self, value: &'static str) -> Self {
        self.development = Some(value);
        self
    }

    pub(super) const fn partial(mut self) -> Self {
        self.effect = Effect::Partial;
        self
    }

    pub(super) const fn not_yet(mut self, reason: &'static str) -> Self {
        self.effect = Effect::NotYet(reason);
        self
    }

    pub(super) const fn client(mut self) -> Self {
        self.effect = Effect::Client;
        self
    }

    pub(super) const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }
}
