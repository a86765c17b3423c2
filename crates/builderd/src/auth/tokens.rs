//! The file of tokens (`AUTH_TOKENS_FILE`).

use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tenant::TenantId;
use tokio_util::sync::CancellationToken;

use crate::file_version::FileVersion;

/// How often the file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A larger file is not one of tokens.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Whom a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSubject {
    /// One tenant.
    Tenant(TenantId),
    /// A service that acts for any tenant.
    Any,
}

/// Why a file of tokens cannot be used. A line is named by its number, never by what it holds.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is larger than 64 MiB or no text.
    #[error("{path}: expected a text file of at most 64 MiB")]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// A line is neither a token nor a comment.
    #[error(
        "{path}, line {line}: expected the SHA-256 of a token in 64 hexadecimal digits, a space, and a tenant or *"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Two lines are about the same token.
    #[error("{path}, line {line}: the token is there twice")]
    Twice {
        /// The file.
        path: PathBuf,
        /// The second one's line, counted from 1.
        line: usize,
    },
}

type Table = HashMap<[u8; 32], TokenSubject>;

/// The tokens of a file: lines `SHA256HEX TENANT`, or `*` for a service that acts for any tenant; `#` begins a comment.
///
/// Only digests are kept, so neither the file nor the memory of this process shows a token. A look-up compares digests,
/// whose equality tells by its timing nothing about a token.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    table: Table,
    version: Option<FileVersion>,
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn load(path: impl Into<PathBuf>) -> Result<Self, TokensError> {
        let path = path.into();
        let version = FileVersion::of(&path);
        let table = read(&path)?;
        Ok(Self {
            path,
            state: RwLock::new(State { table, version }),
        })
    }

    /// Whom a token is for; `None` when it is not known.
    #[must_use]
    pub fn subject(&self, token: &[u8]) -> Option<TokenSubject> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.table.get(&digest).cloned()
    }

    /// Reads the file again if it has changed; `true` when it had. When the new content cannot be used, the old one
    /// stays.
    ///
    /// # Errors
    /// [`TokensError`], once for each change.
    pub fn refresh(&self) -> Result<bool, TokensError> {
        let version = FileVersion::of(&self.path);
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            if state.version == version {
                return Ok(false);
            }
            state.version = version;
        }
        let table = read(&self.path)?;
        self.state.write().unwrap_or_else(PoisonError::into_inner).table = table;
        Ok(true)
    }

    /// Takes up changes of the file until `stop` is cancelled.
    pub async fn watch(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            // A look at one inode, and a small file when it has changed: not worth a thread.
            match self.refresh() {
                Ok(false) => {}
                Ok(true) => tracing::info!(file = %self.path.display(), "Tokens were read again"),
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "Tokens have changed and cannot be used: the old ones stay");
                }
            }
        }
    }
}

fn read(path: &std::path::Path) -> Result<Table, TokensError> {
    let failed = |source| TokensError::Read {
        path: path.to_owned(),
        source,
    };
    let not_text = || TokensError::NotText {
        path: path.to_owned(),
    };
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE_BYTES + 1), &mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(not_text());
    }
    let text = String::from_utf8(bytes).map_err(|_| not_text())?;
    let mut table = Table::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index + 1;
        let (digest, subject) = entry(line).ok_or_else(|| TokensError::Line {
            path: path.to_owned(),
            line: number,
        })?;
        if table.insert(digest, subject).is_some() {
            return Err(TokensError::Twice {
                path: path.to_owned(),
                line: number,
            });
        }
    }
    Ok(table)
}

fn entry(line: &str) -> Option<([u8; 32], TokenSubject)> {
    let mut words = line.split_ascii_whitespace();
    let (digest, subject, None) = (words.next()?, words.next()?, words.next()) else {
        return None;
    };
    let mut bytes = [0; 32];
    hex::decode_to_slice(digest, &mut bytes).ok()?;
    let subject = match subject {
        "*" => TokenSubject::Any,
        tenant => TokenSubject::Tenant(tenant.parse().ok()?),
    };
    Some((bytes, subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(token: &str, subject: &str) -> String {
        format!("{} {subject}\n", hex::encode(Sha256::digest(token)))
    }

    #[test]
    fn tokens_are_found_by_their_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        let content = format!("# services\n\n{}  {}", line("one", "acme"), line("two", "*"));
        fs::write(&path, content).unwrap();
        let tokens = Tokens::load(&path).unwrap();
        let acme = TokenSubject::Tenant("acme".parse().unwrap());
        assert_eq!(tokens.subject(b"one"), Some(acme));
        assert_eq!(tokens.subject(b"two"), Some(TokenSubject::Any));
        for unknown in ["", "three", "one ", &hex::encode(Sha256::digest("one"))] {
            assert_eq!(tokens.subject(unknown.as_bytes()), None, "{unknown:?}");
        }
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        for wrong in [
            "secret acme\n",
            &line("one", "a/b"),
            &line("one", ""),
            &line("one", "a b"),
        ] {
            fs::write(&path, format!("# first\n{wrong}")).unwrap();
            let error = Tokens::load(&path).unwrap_err();
            assert!(
                matches!(error, TokensError::Line { line: 2, .. }),
                "{wrong:?}: {error}"
            );
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        fs::write(&path, line("one", "a") + &line("one", "b")).unwrap();
        let error = Tokens::load(&path).unwrap_err();
        assert!(matches!(error, TokensError::Twice { line: 2, .. }), "{error}");
    }

    #[test]
    fn a_changed_file_is_taken_up_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens");
        // Replaced by rename, so that every version is an inode of its own.
        let replace = |content: &str| {
            fs::write(directory.path().join("new"), content).unwrap();
            fs::rename(directory.path().join("new"), &path).unwrap();
        };
        replace(&line("one", "acme"));
        let tokens = Tokens::load(&path).unwrap();
        assert!(!tokens.refresh().unwrap());
        replace(&line("two", "acme"));
        assert!(tokens.refresh().unwrap());
        assert_eq!(tokens.subject(b"one"), None);
        assert!(tokens.subject(b"two").is_some());
        replace("nonsense\nnonsense\n");
        tokens.refresh().unwrap_err();
        assert!(tokens.subject(b"two").is_some(), "the old ones stay");
        assert!(!tokens.refresh().unwrap(), "a broken file is told of once");
    }
}
