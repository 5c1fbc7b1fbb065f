//! Writes the definitions of podspan's types to the directory that is named: `manifests/base/crds`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory: PathBuf = std::env::args_os().nth(1).ok_or("name the directory to write to")?.into();
    for (file, definition) in podspan_kubernetes::crd::definitions() {
        let path = directory.join(file);
        std::fs::write(&path, serde_saphyr::to_string(&definition)?)?;
        println!("{}", path.display());
    }
    Ok(())
}
