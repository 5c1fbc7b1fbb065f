//! The definitions that users apply are those of the types.

use std::path::Path;

#[test]
fn the_manifests_are_what_the_types_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/base/crds");
    for (file, definition) in podspan_kubernetes::crd::definitions() {
        let path = directory.join(file);
        let stored = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}; {HOW}", path.display()));
        let wanted = serde_saphyr::to_string(&definition).unwrap();
        assert!(stored == wanted, "{} is not what the types say: {HOW}", path.display());
    }
}

const HOW: &str = "run `cargo run -p podspan-kubernetes --example crds -- manifests/base/crds`";
