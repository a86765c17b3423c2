use std::{fs, path::Path};

use tonic::Code;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn config(directory: &Path, max_bytes: u64, max_files: u32) -> AuditConfig {
    AuditConfig {
        path: directory.join("audit.log"),
        max_bytes,
        max_files,
    }
}

fn event(number: usize) -> AuditEvent {
    AuditEvent::new("CreateBuild", Actor::builderd(), SystemTime::UNIX_EPOCH).on(format!("build-{number:04}"))
}

/// The targets of the events in a file, all of whose lines have to be whole.
fn targets(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let events = text.lines().filter(|line| !line.is_empty());
    events
        .map(|line| {
            serde_json::from_str::<AuditEvent>(line)
                .unwrap()
                .target
                .unwrap_or_default()
        })
        .collect()
}

#[tokio::test]
async fn files_are_bounded_and_the_oldest_goes() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), 1_000, 3);
    let log = AuditLog::open(&config).unwrap();
    for number in 0..100 {
        log.record(&event(number));
        log.flush(PATIENCE).await;
    }
    let mut names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2"]);
    let mut kept = Vec::new();
    for name in ["audit.log.2", "audit.log.1", "audit.log"] {
        let path = directory.path().join(name);
        assert!(fs::metadata(&path).unwrap().len() <= 1_000, "{name}");
        kept.extend(targets(&path));
    }
    let expected: Vec<String> = (100 - kept.len()..100)
        .map(|number| format!("build-{number:04}"))
        .collect();
    assert_eq!(kept, expected, "the latest, in their order, without a gap");
    assert_eq!(log.lost(), 0);
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        fs::metadata(&config.path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test]
async fn a_log_goes_on_behind_a_line_that_a_crash_has_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), 1 << 20, 2);
    fs::write(&config.path, "{\"time\":\"20").unwrap();
    let log = AuditLog::open(&config).unwrap();
    log.record(&event(7));
    log.flush(PATIENCE).await;
    let text = fs::read_to_string(&config.path).unwrap();
    let (torn, whole) = text.split_once('\n').unwrap();
    assert_eq!(torn, "{\"time\":\"20");
    assert_eq!(serde_json::from_str::<AuditEvent>(whole).unwrap(), event(7));
}

#[tokio::test]
async fn a_full_disk_holds_up_nobody_and_what_is_lost_is_counted() {
    // Every write to it fails as on a full disk.
    let log = AuditLog::open(&AuditConfig {
        path: "/dev/full".into(),
        max_bytes: 1 << 20,
        max_files: 2,
    });
    let Ok(log) = log else {
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("skipped: there is no /dev/full\n"),
        );
        return;
    };
    for number in 0..10 {
        log.record(&event(number));
    }
    log.flush(PATIENCE).await;
    assert_eq!(log.lost(), 10);
    // What the database keeps is not lost, only late.
    assert!(!log.write(vec![event(11).to_line()]).await);
    assert_eq!(log.lost(), 10);
}

#[test]
fn what_was_lost_is_told_when_there_is_room_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer {
        file: RotatingFile::open(&config(directory.path(), 1 << 20, 2)).unwrap(),
        lost: Arc::default(),
        untold: 3,
    };
    assert!(writer.write(vec![event(1).to_line()], false));
    assert!(writer.write(vec![event(2).to_line()], false));
    let text = fs::read_to_string(directory.path().join("audit.log")).unwrap();
    let events: Vec<AuditEvent> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events[0].action, "audit.lost");
    assert!(
        events[0].reason.as_deref().unwrap().starts_with("3 events"),
        "{:?}",
        events[0]
    );
    assert_eq!(events[1..], [event(1), event(2)]);
}

#[tokio::test]
async fn how_a_call_ended_is_its_result() {
    let directory = tempfile::tempdir().unwrap();
    let log = AuditLog::open(&config(directory.path(), 1 << 20, 2)).unwrap();
    let cases = [
        ("CreateBuild", Code::Ok, Some(AuditResult::Ok)),
        ("CreateBuild", Code::InvalidArgument, Some(AuditResult::Refused)),
        ("DeleteBuild", Code::PermissionDenied, Some(AuditResult::Refused)),
        ("CancelBuild", Code::Internal, Some(AuditResult::Failed)),
        // The work goes on without its caller.
        ("CreateBuild", Code::Cancelled, Some(AuditResult::Unknown)),
        ("DeleteBuild", Code::DeadlineExceeded, Some(AuditResult::Unknown)),
        ("GetBuild", Code::NotFound, None),
        ("GetBuild", Code::Unauthenticated, Some(AuditResult::Refused)),
    ];
    for (method, code, _) in &cases {
        let path = format!("/builder.v1.BuilderService/{method}");
        Call::new(log.clone(), &path, Actor::builderd(), Trail::default()).ended(*code, "");
    }
    log.flush(PATIENCE).await;
    let text = fs::read_to_string(directory.path().join("audit.log")).unwrap();
    let told: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<AuditEvent>(line).unwrap())
        .map(|event| (event.action, event.result))
        .collect();
    let expected: Vec<_> = cases
        .iter()
        .filter_map(|(method, _, result)| Some(((*method).to_owned(), (*result)?)))
        .collect();
    assert_eq!(told, expected);
}
