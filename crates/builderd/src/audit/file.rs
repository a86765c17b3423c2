//! A file of lines that is bounded: when it is full it is renamed, and the oldest one goes.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
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
        let file = open(config)?;
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
        let older = |number: u32| -> PathBuf {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{number}"));
            name.into()
        };
        match self.config.max_files {
            0 | 1 => fs::remove_file(path)?,
            files => {
                for number in (1..files - 1).rev() {
                    rename(&older(number), &older(number + 1))?;
                }
                rename(path, &older(1))?;
            }
        }
        self.file = open(&self.config)?;
        self.length = self.file.metadata()?.len();
        self.torn = false;
        Ok(())
    }
}

fn open(config: &AuditConfig) -> io::Result<File> {
    File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&config.path)
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
fn rename(from: &std::path::Path, to: &std::path::Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
