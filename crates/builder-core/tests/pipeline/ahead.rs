//! Layers that are pulled before their turn to be indexed.

use test_support::{
    image::{Image, Layer},
    registry::{Misbehaviour, Registry},
};

use crate::common::{PATIENCE, Site, host_architecture, noise, request};

fn layers(range: std::ops::Range<u64>) -> Image {
    range.fold(
        Image::new().platform("linux", &host_architecture(), ""),
        |image, nth| image.layer(&Layer::new().file(format!("{nth}"), noise(50_000, nth + 1))),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn all_layers_come_in_at_once_while_one_at_a_time_is_indexed() {
    let registry = Registry::start().unwrap();
    let image = layers(0..4).build();
    let reference = registry.publish("team/app", "1", &image);
    for layer in &image.layers {
        registry.misbehave(&layer.digest, Misbehaviour::StallAt(layer.size_bytes / 2));
    }
    let mut site = Site::new();
    site.config.layers_in_parallel = 1;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let all_stalled = registry.wait_for_stalled(4, PATIENCE);
            // Whatever came of it: a build that waits would wait for ever.
            registry.behave();
            registry.release();
            assert!(all_stalled, "all four were asked for before one was there");
        });
        let request = request(&reference);
        let building = site.build(&request, "rootfs.ext4");
        let ended = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(building));
        ended.outcome();
    });
    assert_eq!(
        registry.count_requests("/blobs/") - 1,
        4,
        "each once, and the config"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_cache_is_not_asked_for() {
    let registry = Registry::start().unwrap();
    registry.publish("team/app", "1", &layers(0..4).build());
    let image = layers(0..6).build();
    let reference = registry.publish("team/app", "2", &image);
    let site = Site::new();
    let first = request(&registry.reference("team/app", "1"));
    site.build(&first, "1.ext4").await.outcome();
    registry.forget_requests();
    site.build(&request(&reference), "2.ext4").await.outcome();
    for (layer_idx, layer) in image.layers.iter().enumerate() {
        let asked = registry.count_requests(&layer.digest);
        assert_eq!(asked, usize::from(layer_idx >= 4), "layer {layer_idx}");
    }
}
