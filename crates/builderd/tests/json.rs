//! Bodies in JSON.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use builderd::status::BadRequest;
use prost::Message as _;
use support::Server;

#[tokio::test]
async fn json_takes_both_spellings_and_answers_in_one() {
    let server = Server::start().await;
    for body in [
        r#"{"build_id":"b","tenant_id":"t"}"#,
        r#"{"buildId":"b","tenantId":"t"}"#,
        r#"{"buildId":"b","tenant_id":"t","unknownField":{"x":[1]}}"#,
    ] {
        let (status, answer) = server.connect("GetBuild", body).await;
        assert_eq!(status, 200, "{body}");
        let build = &answer["build"];
        assert_eq!(build["buildId"], "b");
        assert_eq!(build["rootfsPath"], "t");
        // A number of this size is not exact in JavaScript, which is why it is a string.
        assert_eq!(build["rootfsSizeBytes"], "9007199254740993");
        assert_eq!(build["state"], "BUILD_STATE_COMPLETED");
        assert_eq!(build.get("metrics"), None, "what is not known is absent");
    }
}

#[tokio::test]
async fn json_bodies_that_hide_a_mistake_are_refused() {
    let server = Server::start().await;
    for (method, body, expected) in [
        ("GetBuild", "[]", "expected a JSON object"),
        ("GetBuild", "null", "expected a JSON object"),
        ("GetBuild", "7", "expected a JSON object"),
        ("GetBuild", "", "EOF"),
        ("GetBuild", "{", "EOF"),
        ("GetBuild", "{} {}", "trailing characters"),
        (
            "GetBuild",
            r#"{"build_id":"b","buildId":"c"}"#,
            "build_id: expected once",
        ),
        (
            "GetBuild",
            r#"{"build_id":"b","build_id":"c"}"#,
            "build_id: expected once",
        ),
        (
            "GetBuild",
            r#"{"build_id":7}"#,
            "build_id: expected a JSON string, got a number",
        ),
        ("GetBuild", "{\"build_id\":\"\u{0}\"}", "control character"),
        (
            "CreateBuild",
            r#"{"config":[]}"#,
            "config: expected a JSON object",
        ),
        (
            "CreateBuild",
            r#"{"config":{"tenant":{"tier":"TENANT_TIER_GOLD"}}}"#,
            "config.tenant.tier: expected one of",
        ),
        (
            "CreateBuild",
            r#"{"config":{"tenant":{"tier":99999999999}}}"#,
            "config.tenant.tier",
        ),
        (
            "CreateBuild",
            r#"{"config":{"tenant":{"tier":{}}}}"#,
            "config.tenant.tier",
        ),
        (
            "CreateBuild",
            r#"{"config":{"labels":{"a":"1","a":"2"}}}"#,
            "config.labels.a: expected once",
        ),
        (
            "CreateBuild",
            r#"{"config":{"labels":["a"]}}"#,
            "config.labels: expected a JSON object",
        ),
        (
            "CreateBuild",
            r#"{"config":{"limits":{"max_disk_bytes":"many"}}}"#,
            "",
        ),
        (
            "CreateBuild",
            r#"{"config":{"limits":{"max_disk_bytes":9223372036854775808}}}"#,
            "",
        ),
        (
            "CreateBuild",
            r#"{"config":{"source":{"docker_image":{},"archive":{}}}}"#,
            "",
        ),
        (
            "ListBuilds",
            r#"{"state_filter":["BUILD_STATE_DONE"]}"#,
            "state_filter: expected one of",
        ),
        (
            "ListBuilds",
            r#"{"state_filter":"BUILD_STATE_FAILED"}"#,
            "state_filter: expected a JSON array",
        ),
        ("GetBuildStats", r#"{"start_time":"yesterday"}"#, ""),
    ] {
        let (status, answer) = server.connect(method, body).await;
        assert_eq!(status, 400, "{method} {body}: {answer}");
        assert_eq!(answer["code"], "invalid_argument", "{method} {body}");
        let message = answer["message"].as_str().unwrap();
        assert!(
            !message.is_empty() && message.contains(expected),
            "{method} {body}: {message}"
        );
    }
    let nested = "[".repeat(20_000);
    let (status, answer) = server
        .connect("CreateBuild", format!(r#"{{"config":{{"x":{nested}"#))
        .await;
    assert_eq!((status, answer["code"].as_str()), (400, Some("invalid_argument")));
}

#[tokio::test]
async fn json_takes_integers_as_strings_and_enums_as_numbers() {
    let server = Server::start().await;
    for body in [
        r#"{"config":{"build_name":"n","limits":{"maxDiskBytes":"9007199254740993"}}}"#,
        r#"{"config":{"build_name":"n","limits":{"max_disk_bytes":12}}}"#,
        r#"{"config":{"build_name":"n","tenant":{"tier":4,"permissions":null}}}"#,
        r#"{"config":{"build_name":"n","tenant":null,"labels":{"a":"1","b":"2"}}}"#,
    ] {
        let (status, answer) = server.connect("CreateBuild", body).await;
        assert_eq!(
            (status, answer["buildId"].as_str()),
            (200, Some("n")),
            "{body}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_json_mistake_names_its_field_and_quotes_no_secret() {
    let server = Server::start().await;
    let auth = "config.source.docker_image.auth";
    for (value, field) in [
        (r#""hunter2""#, auth.to_owned()),
        (r#"["hunter2"]"#, auth.to_owned()),
        ("271828", auth.to_owned()),
        (r#"{"password":271828}"#, format!("{auth}.password")),
        (r#"{"password":["hunter2"]}"#, format!("{auth}.password")),
        (
            r#"{"password":{"hunter2":"hunter2"}}"#,
            format!("{auth}.password"),
        ),
        (r#"{"password":true}"#, format!("{auth}.password")),
        (r#"{"token":271828.5}"#, format!("{auth}.token")),
        (
            r#"{"token":"hunter2","token":"hunter2"}"#,
            format!("{auth}.token"),
        ),
    ] {
        let body = format!(r#"{{"config":{{"source":{{"docker_image":{{"auth":{value}}}}}}}}}"#);
        let (status, answer) = server.connect("CreateBuild", body).await;
        assert_eq!(status, 400, "{value}: {answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(
            message.starts_with(&format!("{field}: expected ")),
            "{value}: {message}"
        );
        let text = answer.to_string();
        assert!(
            !text.contains("hunter2") && !text.contains("271828"),
            "{value}: {text}"
        );

        assert_eq!(answer["details"][0]["type"], "google.rpc.BadRequest");
        let detail = STANDARD_NO_PAD
            .decode(answer["details"][0]["value"].as_str().unwrap())
            .unwrap();
        let detail = BadRequest::decode(detail.as_slice()).unwrap();
        assert_eq!(detail.field_violations[0].field, field);
    }
}
