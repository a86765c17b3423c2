//! The calls on the page about the API work as they stand there.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use builderd_e2e::{
    api::{Api, TENANT},
    bench::Bench,
    parts,
};
use serde_json::{Value, json};
use test_support::{lab, registry::Misbehaviour};

const METHODS: [&str; 8] = [
    "CreateBuild",
    "GetBuild",
    "ListBuilds",
    "StreamBuildLogs",
    "CancelBuild",
    "DeleteBuild",
    "GetTenantQuotas",
    "GetBuildStats",
];

/// Methods of which the page says that they are not there yet.
const NOT_YET: &str = "Answers UNIMPLEMENTED for now.";

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page() -> String {
    std::fs::read_to_string(workspace().join("docs/api/README.md")).unwrap()
}

/// The part of the page about a method.
fn section<'a>(page: &'a str, method: &str) -> &'a str {
    let heading = format!("\n### {method}\n");
    let (_, section) = page
        .split_once(&heading)
        .unwrap_or_else(|| panic!("{method} is not on the page"));
    section
        .split("\n## ")
        .next()
        .unwrap()
        .split("\n### ")
        .next()
        .unwrap()
}

/// The code in a section that is in a language.
fn blocks<'a>(section: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    section
        .split(opening.as_str())
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// Runs a call of the page in a shell.
fn run(bench: &Bench, call: &str, build: &str) -> Output {
    let call = call
        .replace(
            "http://localhost:8082",
            &format!("http://{}", bench.daemon.address()),
        )
        .replace("nginx:1.21-alpine", &bench.reference);
    let programs = parts::lab_part("node/node_modules/.bin").unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    Command::new("bash")
        .args(["-e", "-u", "-o", "pipefail", "-c", &call])
        .env("BUILD", build)
        .env("PATH", path)
        // What buf keeps between calls is not for the home of whoever runs this.
        .env("HOME", bench.scratch())
        .output()
        .unwrap()
}

#[test]
fn rust_on_the_page_is_part_of_the_example() {
    let example = std::fs::read_to_string(workspace().join("crates/builderd/examples/methods.rs")).unwrap();
    let trimmed = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let example = trimmed(&example);
    let page = page();
    for method in METHODS {
        let section = section(&page, method);
        let [code] = blocks(section, "rust")[..] else {
            panic!("{method}: expected one call in Rust");
        };
        assert!(
            example.contains(trimmed(code).trim()),
            "{method}: not in the example:\n{code}"
        );
        let calls = blocks(section, "sh");
        let with = |program: &str| calls.iter().filter(|call| call.contains(program)).count();
        assert_eq!(
            (with("curl -s"), with("buf curl")),
            (1, 1),
            "{method}: expected one call each"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_calls_on_the_page_work() {
    let parts = parts::lab_part("node/node_modules/.bin/buf")
        .and_then(|_| lab::program("curl", "curl"))
        .and_then(|_| Bench::start(&[("TENANT_DEFAULT_TIER", "enterprise")]));
    let bench = match parts {
        Ok(bench) => bench,
        Err(missing) => return lab::skip(missing),
    };
    let api = Api::new(bench.daemon.address()).unwrap();
    let completed = api.create(&bench.reference).await.unwrap();
    api.finish(&completed, |_| {}).await.unwrap();

    let page = page();
    for method in METHODS {
        let section = section(&page, method);
        for call in blocks(section, "sh") {
            let build = match method {
                "CancelBuild" => {
                    // A build of an image of its own, which never comes.
                    bench.registry.misbehave("/blobs/", Misbehaviour::StallAt(0));
                    api.create(&bench.reference).await.unwrap()
                }
                "DeleteBuild" => {
                    let build = api.create(&bench.reference).await.unwrap();
                    api.finish(&build, |_| {}).await.unwrap();
                    build
                }
                _ => completed.clone(),
            };
            let output = run(&bench, call, &build);
            if method == "CancelBuild" {
                // Where the call did nothing, the build must not stay.
                let body = json!({"build_id": build, "tenant_id": TENANT}).to_string();
                api.call("CancelBuild", &body).await.unwrap();
                bench.registry.behave();
                bench.registry.release();
            }
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let said = format!("{method}: {call}\n{printed}\n{errors}\n{}", bench.daemon.log());
            if section.contains(NOT_YET) {
                assert!(format!("{printed}{errors}").contains("unimplemented"), "{said}");
                continue;
            }
            assert!(output.status.success(), "{said}");
            if method == "StreamBuildLogs" {
                assert!(printed.contains("\"sequence\""), "{said}");
                continue;
            }
            let answer: Value = serde_json::from_str(&printed).unwrap_or_else(|_| panic!("{said}"));
            assert_eq!(answer.get("code"), None, "{said}");
        }
    }
}

#[test]
fn privileged_the_example_with_every_method_works() {
    let parts = parts::methods_example().and_then(|example| Ok((example, Bench::start(&[])?)));
    let (example, bench) = match parts {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let output = Command::new(example)
        .arg(format!("http://{}", bench.daemon.address()))
        .arg(&bench.reference)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{}", bench.daemon.log());
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("BUILD_STATE_COMPLETED"), "{printed}");
}
