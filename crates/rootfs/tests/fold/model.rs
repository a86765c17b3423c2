//! A second fold, written from the rules and not from the first: a map of whole paths instead of a tree of inodes,
//! copied for every layer, links satisfied by trying until nothing changes. Slow, and simple enough to be believed.

use std::collections::{BTreeMap, BTreeSet};

use rootfs::{
    Metadata,
    fold::Mode,
    layer::{Entry, EntryKind},
};

use crate::dsl::{Layer, MTIME};

type Path = Vec<String>;

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Directory,
    File(u64),
    Symlink(String),
    Fifo,
    /// A hard link that has found no target yet.
    Waiting(String),
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    metadata: Metadata,
}

/// Paths to nodes; paths that share a number share the node. The root is the empty path.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    mode: Mode,
    names: BTreeMap<Path, usize>,
    nodes: Vec<Node>,
}

/// The model refuses a layer, for a reason that is of no interest.
#[derive(Debug)]
pub(crate) struct Refused;

#[derive(Clone, Copy, PartialEq)]
enum Last {
    Follow,
    Keep,
}

impl Model {
    pub(crate) fn new(mode: Mode) -> Self {
        let root = Node {
            kind: Kind::Directory,
            metadata: Metadata::root(0o755),
        };
        Self {
            mode,
            names: BTreeMap::from([(Vec::new(), 0)]),
            nodes: vec![root],
        }
    }

    fn kind(&self, path: &[String]) -> Option<&Kind> {
        self.names.get(path).map(|&number| &self.nodes[number].kind)
    }

    /// The path without symbolic links. It need not exist; what is below something that does not exist, or is no
    /// directory, is taken as text. Too many links are refused.
    fn canonical(
        &self,
        path: &[String],
        last: Last,
        follows: impl Fn(&Path) -> bool,
    ) -> Result<Path, Refused> {
        let mut done: Path = Vec::new();
        let mut rest: Path = path.to_vec();
        let mut links = 0;
        while !rest.is_empty() {
            let name = rest.remove(0);
            if name.is_empty() || name == "." {
                continue;
            }
            if name == ".." {
                done.pop();
                continue;
            }
            done.push(name);
            let is_last = rest.iter().all(|name| name.is_empty() || name == ".");
            if let Some(Kind::Symlink(target)) = self.kind(&done)
                && (!is_last || last == Last::Follow)
                && follows(&done)
            {
                links += 1;
                if links > 40 {
                    return Err(Refused);
                }
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                let mut path: Path = target.split('/').map(str::to_owned).collect();
                path.append(&mut rest);
                rest = path;
            }
        }
        Ok(done)
    }

    fn remove(&mut self, path: &[String]) {
        self.names.retain(|other, _| !other.starts_with(path));
    }

    fn add(&mut self, path: Path, kind: Kind, metadata: Metadata) {
        self.nodes.push(Node { kind, metadata });
        self.names.insert(path, self.nodes.len() - 1);
    }

    pub(crate) fn apply(&mut self, layer: &Layer) -> Result<(), Refused> {
        let before = self.clone();
        // Names that this layer has brought so far.
        let mut ours: BTreeSet<Path> = BTreeSet::new();
        let mut shadowing = Vec::new();

        for (position, entry) in layer.entries.iter().enumerate() {
            let (parents, name) = match lexical(&entry.path).split_last() {
                Some((name, parents)) => (parents.to_vec(), name.clone()),
                None if entry.kind == EntryKind::Directory => continue,
                None => return Err(Refused),
            };
            if let EntryKind::HardLink(target) = &entry.kind
                && !name.starts_with(".wh.")
            {
                if lexical(target).is_empty() {
                    return Err(Refused);
                }
                before.canonical(&lexical(target), Last::Keep, |_| true)?;
            }
            let Some(hidden) = name.strip_prefix(".wh.") else {
                continue;
            };
            let crosses = (1..=parents.len()).find_map(|length| match before.kind(&parents[..length]) {
                Some(Kind::Directory) => None,
                Some(Kind::Symlink(_)) => Some(true),
                _ => Some(false),
            });
            if crosses == Some(true) && self.mode == Mode::Docker {
                shadowing.push(position);
                continue;
            }
            let directory = before.canonical(&parents, Last::Follow, |_| true)?;
            // Below what is no directory there is nothing, whatever the text says.
            if (0..=directory.len()).any(|length| before.kind(&directory[..length]) != Some(&Kind::Directory))
            {
                continue;
            }
            if hidden == ".wh..opq" {
                self.names
                    .retain(|path, _| path.len() <= directory.len() || !path.starts_with(&directory));
            } else {
                self.remove(&[&directory[..], &[hidden.to_owned()]].concat());
            }
        }

        for (position, entry) in layer.entries.iter().enumerate() {
            let path = lexical(&entry.path);
            let Some((name, parents)) = path.split_last() else {
                if self.mode == Mode::Oci {
                    self.nodes[0].metadata = entry.metadata.clone();
                }
                continue;
            };
            if name.starts_with(".wh.") {
                if shadowing.contains(&position) {
                    self.reach(parents, &mut ours)?;
                }
                continue;
            }
            let mut path = self.reach(parents, &mut ours)?;
            path.push(name.clone());
            self.place(entry, path, &mut ours)?;
        }

        // Links that waited: first whatever this layer has, and the lower layers only where nothing of it can come.
        loop {
            if self.satisfy(&before, &mut ours, false)? || self.satisfy(&before, &mut ours, true)? {
                continue;
            }
            break;
        }
        let is_waiting = |number: &usize| matches!(self.nodes[*number].kind, Kind::Waiting(_));
        if self.names.values().any(is_waiting) {
            Err(Refused)
        } else {
            Ok(())
        }
    }

    /// Makes the parents of an entry and says where they are.
    fn reach(&mut self, parents: &[String], ours: &mut BTreeSet<Path>) -> Result<Path, Refused> {
        let mode = self.mode;
        let path = self.canonical(parents, Last::Follow, |path| {
            mode == Mode::Oci || ours.contains(path)
        })?;
        for length in 1..=path.len() {
            let parent = &path[..length];
            if self.kind(parent) != Some(&Kind::Directory) {
                self.take_away(parent, ours);
                self.add(parent.to_vec(), Kind::Directory, Metadata::root(0o755));
                ours.insert(parent.to_vec());
            }
        }
        Ok(path)
    }

    fn take_away(&mut self, path: &[String], ours: &mut BTreeSet<Path>) {
        self.remove(path);
        ours.retain(|other| !other.starts_with(path));
    }

    fn place(&mut self, entry: &Entry, path: Path, ours: &mut BTreeSet<Path>) -> Result<(), Refused> {
        let kind = match &entry.kind {
            EntryKind::Directory => {
                if self.kind(&path) == Some(&Kind::Directory) {
                    let number = self.names[&path];
                    self.nodes[number].metadata = entry.metadata.clone();
                    ours.insert(path);
                    return Ok(());
                }
                Kind::Directory
            }
            EntryKind::File(body) => Kind::File(body.size),
            EntryKind::Symlink(target) => Kind::Symlink(text(target)),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink(target) => {
                let found = self.canonical(&lexical(target), Last::Keep, |_| true)?;
                if ours.contains(&found) {
                    if found == path || self.kind(&found) == Some(&Kind::Directory) {
                        return Err(Refused);
                    }
                    if !matches!(self.kind(&found), Some(Kind::Waiting(_))) {
                        let number = self.names[&found];
                        self.connect(entry, path, number, ours);
                        return Ok(());
                    }
                }
                Kind::Waiting(text(target))
            }
            EntryKind::CharacterDevice(_) | EntryKind::BlockDevice(_) => unreachable!("not generated"),
        };
        let mut metadata = entry.metadata.clone();
        if matches!(kind, Kind::Symlink(_)) {
            metadata.mode = 0o777;
        }
        self.take_away(&path, ours);
        self.add(path.clone(), kind, metadata);
        ours.insert(path);
        Ok(())
    }

    fn connect(&mut self, entry: &Entry, path: Path, number: usize, ours: &mut BTreeSet<Path>) {
        self.adopt(&entry.metadata, number);
        self.take_away(&path, ours);
        self.names.insert(path.clone(), number);
        ours.insert(path);
    }

    fn adopt(&mut self, metadata: &Metadata, number: usize) {
        if self.mode == Mode::Docker {
            let node = &mut self.nodes[number];
            let mode = if matches!(node.kind, Kind::Symlink(_)) {
                node.metadata.mode
            } else {
                metadata.mode
            };
            node.metadata = Metadata {
                mode,
                ..metadata.clone()
            };
        }
    }

    /// Satisfies the first waiting link that can be, and says whether there was one.
    fn satisfy(
        &mut self,
        before: &Self,
        ours: &mut BTreeSet<Path>,
        from_below: bool,
    ) -> Result<bool, Refused> {
        // Waiting nodes were added in archive order, so their numbers have it too.
        let mut waiting: Vec<(usize, Path)> = self
            .names
            .iter()
            .filter(|(_, number)| matches!(self.nodes[**number].kind, Kind::Waiting(_)))
            .map(|(path, number)| (*number, path.clone()))
            .collect();
        waiting.sort();
        for (number, path) in waiting {
            let Kind::Waiting(target) = self.nodes[number].kind.clone() else {
                continue;
            };
            let target = lexical(target.as_bytes());
            let found = self.canonical(&target, Last::Keep, |_| true)?;
            let metadata = self.nodes[number].metadata.clone();
            if ours.contains(&found) {
                match self.kind(&found) {
                    Some(Kind::Directory) => return Err(Refused),
                    Some(Kind::Waiting(_)) => continue,
                    _ => {}
                }
                let target = self.names[&found];
                self.adopt(&metadata, target);
                self.names.insert(path, target);
                return Ok(true);
            }
            if !from_below {
                continue;
            }
            let below = before.canonical(&target, Last::Keep, |_| true)?;
            match before.kind(&below) {
                None | Some(Kind::Directory) => return Err(Refused),
                Some(_) => {}
            }
            if (0..below.len()).any(|length| before.kind(&below[..length]) != Some(&Kind::Directory)) {
                return Err(Refused);
            }
            let target = before.names[&below];
            self.adopt(&metadata, target);
            self.names.insert(path, target);
            return Ok(true);
        }
        Ok(false)
    }

    /// The same lines as `dsl::show`.
    pub(crate) fn show(&self) -> Vec<String> {
        let mut paths: Vec<(String, usize)> = self
            .names
            .iter()
            .map(|(path, &number)| (path.join("/"), number))
            .collect();
        paths.sort();
        let mut lines = Vec::new();
        for (path, number) in &paths {
            let Node { kind, metadata } = &self.nodes[*number];
            let (mut line, usual_mode) = match kind {
                Kind::Directory => (format!("{path}/"), 0o755),
                Kind::File(size) => (format!("{path} {size}"), 0o644),
                Kind::Symlink(target) => (format!("{path} -> {target}"), 0o777),
                Kind::Fifo => (format!("{path} fifo"), 0o644),
                Kind::Waiting(_) => panic!("a finished layer has no waiting links"),
            };
            if *metadata == Metadata::root(0o755) && *kind == Kind::Directory {
                line.push_str(" implied");
            } else {
                if metadata.mode != usual_mode {
                    line.push_str(&format!(" {:o}", metadata.mode));
                }
                assert_eq!(metadata.mtime.seconds, MTIME, "nothing else is generated");
            }
            let same: Vec<_> = paths.iter().filter(|(_, other)| other == number).collect();
            if same.len() > 1 {
                line.push_str(&format!(" [{} of {}]", same.len(), same[0].0));
            }
            lines.push(line);
        }
        lines.retain(|line| line != "/ implied");
        lines
    }
}

/// Components with `..` taken as text.
fn lexical(path: &[u8]) -> Path {
    let mut components = Vec::new();
    for name in text(path).split('/') {
        match name {
            "" | "." => {}
            ".." => {
                components.pop();
            }
            _ => components.push(name.to_owned()),
        }
    }
    components
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("only ASCII is generated")
}
