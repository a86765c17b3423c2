//! Exit codes, as `sysexits.h` numbers them.

use std::{fmt, process::ExitCode};

/// Why a command did not do what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The build that was followed ended without an image.
    BuildEnded,
    /// The command line or a setting is wrong (`EX_USAGE`).
    Usage,
    /// The image, or the build, is not what it should be for this (`EX_DATAERR`).
    Data,
    /// There is no such build (`EX_NOINPUT`).
    NotFound,
    /// Something that is needed cannot be reached or is not there (`EX_UNAVAILABLE`).
    Unavailable,
    /// A fault of the program (`EX_SOFTWARE`).
    Internal,
    /// The output cannot be written (`EX_CANTCREAT`).
    CannotCreate,
    /// A limit is reached or time ran out: later it may work (`EX_TEMPFAIL`).
    Later,
    /// A right or a credential is missing (`EX_NOPERM`).
    Permission,
    /// Ended by SIGINT, as shells number it.
    Interrupted,
}

impl Exit {
    /// The code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::BuildEnded => 1,
            Self::Usage => 64,
            Self::Data => 65,
            Self::NotFound => 66,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::CannotCreate => 73,
            Self::Later => 75,
            Self::Permission => 77,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A command's failure: what to say, and the code to end with.
#[derive(Debug)]
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// What to say, one line or more; empty when it was said already.
    pub message: String,
}

impl Failure {
    /// A failure with a message.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}
