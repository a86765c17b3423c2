//! The fake answers under both names, records, and fails as told.

#![expect(clippy::unwrap_used, reason = "a test program")]

use http::uri::PathAndQuery;
use test_support::assetmanagerd::{
    Code, FakeAssetManager, Request,
    proto::{DeleteAssetRequest, DeleteAssetResponse, RegisterAssetRequest, RegisterAssetResponse},
};
use tonic::{Status, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

/// Calls a method under one name of the service.
async fn call<Q, A>(assets: &FakeAssetManager, package: &str, method: &str, message: Q) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + 'static,
{
    let mut client = Grpc::new(Endpoint::from_shared(assets.endpoint()).unwrap().connect_lazy());
    client.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/{package}.AssetManagerService/{method}")).unwrap();
    let mut request = tonic::Request::new(message);
    request
        .metadata_mut()
        .insert("x-tenant-id", "ann".parse().unwrap());
    Ok(client
        .unary(request, path, ProstCodec::<Q, A>::default())
        .await?
        .into_inner())
}

#[tokio::test]
async fn an_asset_lives_under_both_names() {
    let assets = FakeAssetManager::start().unwrap();
    let register = || RegisterAssetRequest {
        name: "rootfs.ext4".into(),
        id: "wanted".into(),
        ..Default::default()
    };
    let registered: RegisterAssetResponse = call(&assets, "asset.v1", "RegisterAsset", register())
        .await
        .unwrap();
    assert_eq!(registered.asset.unwrap().id, "wanted");
    let second = "deploy.assetmanagerd.v1";
    let again = call::<_, RegisterAssetResponse>(&assets, second, "RegisterAsset", register())
        .await
        .unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);

    let delete = |force| DeleteAssetRequest {
        id: "wanted".into(),
        force,
    };
    assets.set_reference_count("wanted", 1);
    let used = call::<_, DeleteAssetResponse>(&assets, second, "DeleteAsset", delete(false))
        .await
        .unwrap_err();
    assert_eq!(used.code(), Code::FailedPrecondition);
    call::<_, DeleteAssetResponse>(&assets, second, "DeleteAsset", delete(true))
        .await
        .unwrap();
    assert!(assets.assets().is_empty());

    let calls = assets.calls();
    assert_eq!(
        calls.iter().map(|call| call.package).collect::<Vec<_>>(),
        ["asset.v1", second, second, second]
    );
    assert!(
        calls
            .iter()
            .all(|call| call.tenant_id.as_deref() == Some("ann") && call.customer_id.is_none())
    );
    assert_eq!(calls[0].request, Request::Register(register()));
}

#[tokio::test]
async fn it_fails_as_often_as_it_was_told() {
    let assets = FakeAssetManager::start().unwrap();
    assets.fail_times(2, Code::Unavailable);
    let mut codes = Vec::new();
    for _ in 0..3 {
        let answer: Result<RegisterAssetResponse, _> = call(
            &assets,
            "asset.v1",
            "RegisterAsset",
            RegisterAssetRequest::default(),
        )
        .await;
        codes.push(answer.map_or_else(|status| status.code(), |_| Code::Ok));
    }
    assert_eq!(codes, [Code::Unavailable, Code::Unavailable, Code::Ok]);
    assert_eq!(assets.calls().len(), 3);
}
