//! A directory of TLS material by registry, laid out as Docker's and Podman's `certs.d`.
//!
//! `DIRECTORY/HOST[:PORT]/` holds authorities in `*.crt` and a client certificate in `NAME.cert` with its key in `NAME.key`,
//! all PEM. Source: Docker documentation, "Verify repository client with certificates"; containers-certs.d(5).

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use crate::error::{FetchError, FetchErrorKind};
use crate::reference::normalise_registry;

/// A bundle of all the world's authorities is a quarter of this.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Directories beyond this are a path given by mistake.
const MAX_REGISTRIES: usize = 1024;

/// Files of one registry, likewise.
const MAX_FILES: usize = 64;

/// What a directory says about one registry.
#[derive(Default)]
pub(crate) struct RegistryCertificates {
    /// All authorities, one behind the other.
    pub(crate) authorities: Option<Vec<u8>>,
    /// Certificate chain and key.
    pub(crate) client: Option<Vec<u8>>,
}

/// Reads the directory; by registry, as in references.
pub(crate) fn read_directory(directory: &Path) -> Result<BTreeMap<String, RegistryCertificates>, FetchError> {
    let mut found = BTreeMap::new();
    let unreadable = |error| cannot_read(directory, error);
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        // A note that lies beside the directories is nobody's certificate.
        if !path.is_dir() {
            continue;
        }
        if found.len() == MAX_REGISTRIES {
            return Err(wrong(directory, "holds more than 1024 directories"));
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let registry = name.and_then(|name| normalise_registry(name).ok());
        let registry = registry.ok_or_else(|| wrong(&path, "is not named for a registry, as host[:port]"))?;
        if found.insert(registry, read_registry(&path)?).is_some() {
            return Err(wrong(&path, "is there twice, in capitals and in small letters"));
        }
    }
    Ok(found)
}

fn read_registry(directory: &Path) -> Result<RegistryCertificates, FetchError> {
    let unreadable = |error| cannot_read(directory, error);
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        if paths.len() == MAX_FILES {
            return Err(wrong(directory, "holds more than 64 files"));
        }
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    let mut certificates = RegistryCertificates::default();
    for path in &paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => {
                let authorities = certificates.authorities.get_or_insert_default();
                authorities.extend(read_file(path)?);
                authorities.push(b'\n');
            }
            Some("cert") => {
                let key = path.with_extension("key");
                if !paths.contains(&key) {
                    return Err(wrong(path, "has no key beside it, of the same name with .key"));
                }
                let mut client = read_file(path)?;
                client.push(b'\n');
                client.extend(read_file(&key)?);
                if certificates.client.replace(client).is_some() {
                    return Err(wrong(
                        directory,
                        "holds more than one client certificate (*.cert)",
                    ));
                }
            }
            Some("key") if !paths.contains(&path.with_extension("cert")) => {
                return Err(wrong(
                    path,
                    "has no certificate beside it, of the same name with .cert",
                ));
            }
            _ => {}
        }
    }
    if certificates.authorities.is_none() && certificates.client.is_none() {
        return Err(wrong(
            directory,
            "holds neither authorities (*.crt) nor a client certificate (*.cert)",
        ));
    }
    Ok(certificates)
}

fn read_file(path: &Path) -> Result<Vec<u8>, FetchError> {
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes: Vec<u8> = read().map_err(|error| cannot_read(path, error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(wrong(path, "is longer than 1 MiB"));
    }
    Ok(bytes)
}

fn wrong(path: &Path, what: &str) -> FetchError {
    FetchError::invalid(format!("{} {what}", path.display()))
}

fn cannot_read(path: &Path, error: std::io::Error) -> FetchError {
    let message = format!("{} cannot be read", path.display());
    FetchError::with_source(FetchErrorKind::InvalidInput, message, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        directory
    }

    #[test]
    fn authorities_are_joined_and_a_certificate_gets_its_key() {
        let directory = directory(&[
            ("README", "not a registry"),
            ("Registry.Example:5000/a.crt", "A"),
            ("Registry.Example:5000/b.crt", "B"),
            ("[::1]:5000/me.cert", "C"),
            ("[::1]:5000/me.key", "K"),
            ("[::1]:5000/notes.txt", "N"),
        ]);
        let found = read_directory(directory.path()).unwrap();
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["[::1]:5000", "registry.example:5000"]);
        let named = &found["registry.example:5000"];
        assert_eq!(named.authorities.as_deref(), Some(b"A\nB\n".as_slice()));
        assert!(named.client.is_none());
        let client = &found["[::1]:5000"];
        assert_eq!(client.client.as_deref(), Some(b"C\nK".as_slice()));
        assert!(client.authorities.is_none());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_named() {
        let long = "x".repeat((1 << 20) + 1);
        for (files, expected) in [
            (&[("h.io/me.cert", "C")][..], "me.cert has no key beside it"),
            (&[("h.io/me.key", "K")], "me.key has no certificate beside it"),
            (
                &[
                    ("h.io/a.cert", "C"),
                    ("h.io/a.key", "K"),
                    ("h.io/b.cert", "C"),
                    ("h.io/b.key", "K"),
                ],
                "more than one client certificate",
            ),
            (&[("h.io/ca.pem", "A")], "h.io holds neither authorities"),
            (
                &[("not a host/ca.crt", "A")],
                "not a host is not named for a registry",
            ),
            (
                &[("h.io/a.crt", "A"), ("H.io/a.crt", "A")],
                "in capitals and in small letters",
            ),
            (&[("h.io/a.crt", &long)], "a.crt is longer than 1 MiB"),
        ] {
            let directory = directory(files);
            let error = read_directory(directory.path()).err().expect(expected);
            assert_eq!(error.kind(), &FetchErrorKind::InvalidInput, "{expected}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        let missing = read_directory(Path::new("/nonexistent/certs.d")).err().unwrap();
        assert!(
            missing
                .to_string()
                .contains("/nonexistent/certs.d cannot be read")
        );
    }
}
