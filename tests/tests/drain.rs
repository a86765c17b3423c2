//! A service that is told to end while it builds.

use builderd::proto::{BuildState, StreamBuildLogsRequest};
use builderd_e2e::{
    api::{Api, TENANT, seed_request},
    bench::Bench,
};
use test_support::{lab, registry::Misbehaviour};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn privileged_followers_are_sent_away_new_builds_refused_and_the_build_goes_on_after_the_restart() {
    let mut bench = match Bench::start(&[("SHUTDOWN_TIMEOUT", "3s")]) {
        Ok(bench) => bench,
        Err(missing) => return lab::skip(missing),
    };
    // Longer than the service waits for it.
    bench.registry.misbehave("/blobs/", Misbehaviour::StallAt(0));
    let api = Api::new(bench.daemon.address()).unwrap();
    let build_id = api.create(&bench.reference).await.unwrap();
    let follow = |from_sequence| StreamBuildLogsRequest {
        build_id: build_id.clone(),
        tenant_id: TENANT.into(),
        follow: true,
        from_sequence,
    };
    let mut lines = api
        .grpc()
        .stream_build_logs(follow(1))
        .await
        .unwrap()
        .into_inner();
    let mut sequences = vec![lines.message().await.unwrap().unwrap().sequence];

    bench.daemon.terminate().unwrap();
    let ended = loop {
        match lines.message().await {
            Ok(Some(line)) => sequences.push(line.sequence),
            Ok(None) => panic!("the log ended as if the build had; {}", bench.daemon.log()),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    // It drains, or is gone already: either way there is no new build.
    let refused = match api.call("CreateBuild", &seed_request(&bench.reference)).await {
        Ok(answer) => answer.body["code"] == "unavailable",
        Err(_) => true,
    };
    assert!(refused, "{}", bench.daemon.log());

    let status = bench.daemon.restart_when_ended().unwrap();
    assert!(status.success(), "{status}");
    bench.registry.behave();
    bench.registry.release();
    let api = Api::new(bench.daemon.address()).unwrap();
    let next = sequences.last().unwrap() + 1;
    let mut lines = api
        .grpc()
        .stream_build_logs(follow(next))
        .await
        .unwrap()
        .into_inner();
    while let Some(line) = lines.message().await.unwrap() {
        sequences.push(line.sequence);
    }
    let expected: Vec<i64> = (1..).take(sequences.len()).collect();
    assert_eq!(sequences, expected);
    let build = api.build(&build_id).await.unwrap();
    assert_eq!(
        build.state(),
        BuildState::Completed,
        "{}\n{}",
        build.error_message,
        bench.daemon.log()
    );
}
