//! From Docker's USER to numbers, by the image's own `/etc/passwd` and `/etc/group`.
//!
//! The C library's `getpwnam` is no help: linked statically it loads plug-ins of the image at run time.

use std::{ffi::OsString, fmt, os::unix::ffi::OsStringExt};

/// The image's users.
pub const PASSWD_FILE: &str = "/etc/passwd";
/// The image's groups.
pub const GROUP_FILE: &str = "/etc/group";
/// What lies beyond this many bytes of either file is not looked at.
pub const LARGEST_FILE: u64 = 4 << 20;
/// The kernel takes this many supplementary groups (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 65_536;

/// As whom the command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups that the process is to have: the primary one, then the supplementary ones in the order of the file.
    pub groups: Vec<u32>,
    /// Home directory; `None` when the image does not know the user.
    pub home: Option<OsString>,
}

/// The image does not know whom its configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnknownIdentity {
    /// No such user, and not a number from 0 to 4294967294.
    User(String),
    /// No such group, and not a number from 0 to 4294967294.
    Group(String),
}

/// A line of `/etc/passwd`: `name:password:uid:gid:comment:home:shell` (`passwd(5)`).
struct User<'file> {
    name: &'file [u8],
    uid: u32,
    gid: u32,
    home: &'file [u8],
}

/// A line of `/etc/group`: `name:password:gid:member,member` (`group(5)`).
struct Group<'file> {
    name: &'file [u8],
    gid: u32,
    members: &'file [u8],
}

impl Identity {
    /// Whom `user` means, given the contents of the two files (empty when there is none).
    ///
    /// `user` is `USER`, `USER:GROUP` or `:GROUP`, each a name or a number; empty means root. As Docker does it: a
    /// name wins over a number only by its place in the file; a number need not be in the file, and has group 0 then;
    /// supplementary groups come from the group file, unless a group is named.
    ///
    /// # Errors
    ///
    /// [`UnknownIdentity`] for a name that is in neither file.
    pub fn resolve(user: &str, passwd: &[u8], group: &[u8]) -> Result<Self, UnknownIdentity> {
        let (user, group_name) = user.split_once(':').unwrap_or((user, ""));
        let user = if user.is_empty() { "0" } else { user };

        let number = parse_id(user.as_bytes());
        let known = lines(passwd)
            .filter_map(User::parse)
            .find(|line| line.name == user.as_bytes() || Some(line.uid) == number);
        let (uid, mut gid) = match (&known, number) {
            (Some(line), _) => (line.uid, line.gid),
            (None, Some(number)) => (number, 0),
            (None, None) => return Err(UnknownIdentity::User(user.to_owned())),
        };
        let home = known.as_ref().map(|line| OsString::from_vec(line.home.to_vec()));

        let mut groups = Vec::new();
        if !group_name.is_empty() {
            let number = parse_id(group_name.as_bytes());
            gid = lines(group)
                .filter_map(Group::parse)
                .find(|line| line.name == group_name.as_bytes() || Some(line.gid) == number)
                .map(|line| line.gid)
                .or(number)
                .ok_or_else(|| UnknownIdentity::Group(group_name.to_owned()))?;
        } else if let Some(line) = known {
            let has_user = |group: &Group<'_>| {
                group
                    .members
                    .split(|&byte| byte == b',')
                    .any(|name| name == line.name)
            };
            groups.extend(
                lines(group)
                    .filter_map(Group::parse)
                    .filter(has_user)
                    .map(|group| group.gid),
            );
        }
        groups.retain(|&other| other != gid);
        groups.truncate(MOST_GROUPS - 1);
        groups.insert(0, gid);
        Ok(Self {
            uid,
            gid,
            groups,
            home: home.filter(|home| !home.is_empty()),
        })
    }
}

impl<'file> User<'file> {
    fn parse(line: &'file [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = parse_id(fields.nth(1)?)?;
        let gid = parse_id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Self { name, uid, gid, home })
    }
}

impl<'file> Group<'file> {
    fn parse(line: &'file [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = parse_id(fields.nth(1)?)?;
        Some(Self {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.starts_with(b"#"))
}

/// A number of a user or group. The highest value is not one: to the system calls it means "leave unchanged".
fn parse_id(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .filter(|&id| id != u32::MAX)
}

impl fmt::Display for UnknownIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(formatter, "user {name:?} is not in {PASSWD_FILE}"),
            Self::Group(name) => write!(formatter, "group {name:?} is not in {GROUP_FILE}"),
        }
    }
}

impl std::error::Error for UnknownIdentity {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # nobody:x:1:1::/:/bin/sh\n\
        broken line\n\
        daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
        app:x:1000:1001:An App,,,:/home/app:/bin/sh\r\n\
        5000:x:7:8::/seven:\n\
        homeless:x:1002:1002::\n";
    const GROUP: &[u8] =
        b"root:x:0:\nwheel:x:10:root,app\naudio:x:29:app\nuser:x:1001:app\nsmall:x:2:applepie\n500:x:77:\n";

    fn identity(uid: u32, groups: &[u32], home: Option<&str>) -> Result<Identity, UnknownIdentity> {
        Ok(Identity {
            uid,
            gid: groups[0],
            groups: groups.to_vec(),
            home: home.map(Into::into),
        })
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let unknown_user = |name: &str| Err(UnknownIdentity::User(name.into()));
        let unknown_group = |name: &str| Err(UnknownIdentity::Group(name.into()));
        let cases = [
            (
                "nothing is root, with its groups",
                "",
                identity(0, &[0, 10], Some("/root")),
            ),
            ("name", "app", identity(1000, &[1001, 10, 29], Some("/home/app"))),
            (
                "number that the image knows",
                "1000",
                identity(1000, &[1001, 10, 29], Some("/home/app")),
            ),
            ("number that it does not know", "4711", identity(4711, &[0], None)),
            (
                "name that looks like a number",
                "5000",
                identity(7, &[8], Some("/seven")),
            ),
            (
                "named group, no further ones",
                "app:audio",
                identity(1000, &[29], Some("/home/app")),
            ),
            ("numbers", "12:34", identity(12, &[34], None)),
            (
                "group that looks like a number",
                "app:500",
                identity(1000, &[77], Some("/home/app")),
            ),
            ("group alone", ":wheel", identity(0, &[10], Some("/root"))),
            (
                "nothing after the colon",
                "daemon:",
                identity(1, &[1], Some("/usr/sbin")),
            ),
            ("no home", "homeless", identity(1002, &[1002], None)),
            ("unknown name", "nobody", unknown_user("nobody")),
            ("unknown group", "app:nobody", unknown_group("nobody")),
            ("number too large", "4294967295", unknown_user("4294967295")),
            ("negative number", "-1", unknown_user("-1")),
            ("signed number", "+1", unknown_user("+1")),
        ];
        for (name, user, expected) in cases {
            assert_eq!(Identity::resolve(user, PASSWD, GROUP), expected, "{name}");
        }
    }

    #[test]
    fn without_files_root_and_numbers_work() {
        assert_eq!(Identity::resolve("", b"", b""), identity(0, &[0], None));
        assert_eq!(Identity::resolve("33:44", b"", b""), identity(33, &[44], None));
        assert_eq!(
            Identity::resolve("app", b"", b""),
            Err(UnknownIdentity::User("app".into()))
        );
    }

    proptest! {
        #[test]
        fn random_files_are_understood_or_refused(
            user in ".{0,12}",
            passwd in prop::collection::vec(any::<u8>(), 0..200),
            group in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(identity) = Identity::resolve(&user, &passwd, &group) {
                prop_assert_eq!(identity.groups.first(), Some(&identity.gid));
            }
        }
    }
}
