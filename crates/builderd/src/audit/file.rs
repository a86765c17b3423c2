//! A file of lines that is bounded: when it is full it is renamed, and the oldest one goes.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::AuditConfig;

/// `PATH`, and `PATH.1` (the one before) to `PATH.N`.
#[derive(Debug)]
pub(super) struct RotatingFile {
    file: File,
    length: u64,
    /// The last line may not be whole: the next one begins with a line's end.
    torn: bool,
    config: AuditConfig,
}

impl RotatingFile {
    /// Goes on with the file that is there. For its owner alone: what tenants do is not everybody's to read.
    pub(super) fn open(config: &AuditConfig) -> io::Result<Self> {
        let file = open(&config.path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            // A crash may have cut off a line; an empty one more harms nobody.
            torn: length > 0 && !ends_with_line(config),
            file,
            length,
            config: config.clone(),
        })
    }

    /// Adds lines, all of them or none.
    pub(super) fn append(&mut self, lines: &[String]) -> io::Result<()> {
        let mut text = String::new();
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        if self.length > 0 && self.length + text.len() as u64 > self.config.max_bytes {
            self.rotate()?;
        }
        if self.torn {
            text.insert(0, '\n');
        }
        match self.file.write_all(text.as_bytes()) {
            Ok(()) => {
                self.torn = false;
                self.length += text.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A part of it may be there, as when a disk is full.
                self.torn = self.file.set_len(self.length).is_err() || self.torn;
                Err(error)
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.config.path;
        let beside = |ending: &str| -> PathBuf {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{ending}"));
            name.into()
        };
        let older = |number: u32| beside(&number.to_string());
        // Before anything is renamed: while no file can be opened, each try would cost the oldest one.
        let fresh = beside("new");
        let file = open(&fresh)?;
        file.set_len(0)?;
        if self.config.max_files > 1 {
            for number in (1..self.config.max_files - 1).rev() {
                rename(&older(number), &older(number + 1))?;
            }
            rename(path, &older(1))?;
        }
        fs::rename(&fresh, path)?;
        self.file = file;
        self.length = 0;
        self.torn = false;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

fn ends_with_line(config: &AuditConfig) -> bool {
    use std::os::unix::fs::FileExt as _;

    let last = || -> io::Result<u8> {
        let file = File::open(&config.path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, file.metadata()?.len().saturating_sub(1))?;
        Ok(byte[0])
    };
    last().is_ok_and(|byte| byte == b'\n')
}

/// What is not there needs no other name.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_no_file_can_be_opened_no_older_one_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let config = AuditConfig {
            path: directory.path().join("audit.log"),
            max_bytes: 4,
            max_files: 3,
        };
        let mut file = RotatingFile::open(&config).unwrap();
        for line in ["one", "two", "three"] {
            file.append(&[line.to_owned()]).unwrap();
        }
        let read = |ending: &str| {
            fs::read_to_string(directory.path().join(format!("audit.log{ending}"))).unwrap_or_default()
        };
        let kept = || [read(""), read(".1"), read(".2")];
        assert_eq!(kept(), ["three\n", "two\n", "one\n"]);
        fs::create_dir(directory.path().join("audit.log.new")).unwrap();
        for _ in 0..3 {
            assert!(file.append(&["four".to_owned()]).is_err());
        }
        assert_eq!(kept(), ["three\n", "two\n", "one\n"]);
        fs::remove_dir(directory.path().join("audit.log.new")).unwrap();
        file.append(&["four".to_owned()]).unwrap();
        assert_eq!(kept(), ["four\n", "three\n", "two\n"]);
    }
}
