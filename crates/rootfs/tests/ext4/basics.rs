use crate::support::{Fixture, both_profiles};

#[test]
fn an_empty_tree_is_an_image() {
    for (name, options) in both_profiles() {
        println!("{name}");
        let fixture = Fixture::new();
        fixture.image(&options);
    }
}
