//! Container images without a registry: an OCI archive of one uncompressed layer, as
//! `ctr -n k8s.io images import` takes it (OCI Image Layout Specification 1.0).
//!
//! Programs go in with what they are linked against, as `ldd` tells, so no distribution is needed below them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::command::Cmd;

/// An image in the making.
#[derive(Debug, Default)]
pub(crate) struct Image {
    /// By path in the image, without the leading slash.
    files: BTreeMap<String, PathBuf>,
    entrypoint: Vec<String>,
    labels: BTreeMap<String, String>,
}

impl Image {
    /// An empty image that runs this.
    pub(crate) fn new(entrypoint: &[&str]) -> Self {
        Self {
            files: BTreeMap::new(),
            entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
            labels: BTreeMap::new(),
        }
    }

    /// Adds a label, such as `org.opencontainers.image.version`.
    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a program, and the shared libraries and the loader it needs.
    pub(crate) fn program(mut self, at: &str, program: &Path) -> Result<Self> {
        for library in libraries(program)? {
            self.files.insert(library.trim_start_matches('/').to_owned(), PathBuf::from(&library));
        }
        self.files.insert(at.trim_start_matches('/').to_owned(), program.to_owned());
        Ok(self)
    }

    /// Adds a program that must need nothing below it.
    pub(crate) fn static_program(self, at: &str, program: &Path) -> Result<Self> {
        let libraries = libraries(program)?;
        if !libraries.is_empty() {
            bail!("{} is not static, it needs {}", program.display(), libraries.join(", "));
        }
        self.program(at, program)
    }

    /// Writes the archive of the image `name`, a full reference.
    pub(crate) fn write(&self, name: &str, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        self.write_archive(name, &new)
            .and_then(|()| Ok(std::fs::rename(&new, path)?))
            .with_context(|| format!("cannot write the image {name} to {}", path.display()))
    }

    fn write_archive(&self, name: &str, path: &Path) -> Result<()> {
        let layer = self.layer()?;
        let layer_digest = digest(&layer);
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"],
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
            "history": [{"created_by": "cargo lab kube"}],
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        }))?;
        let mut described = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        described["annotations"] =
            json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag});
        described["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [described]}))?;
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        let mut archive = tar::Builder::new(BufWriter::new(File::create(path)?));
        append(&mut archive, "oci-layout", layout)?;
        append(&mut archive, "index.json", &index)?;
        for blob in [&config, &manifest, &layer] {
            append(&mut archive, &format!("blobs/{}", digest(blob).replace(':', "/")), blob)?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }

    /// The layer: files and the directories above them, owned by root, of the same bytes every time.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        let mut made = std::collections::BTreeSet::new();
        let directories = ["tmp", "proc", "sys", "dev", "etc"].map(PathBuf::from);
        let parents = self.files.keys().flat_map(|file| Path::new(file).ancestors().skip(1));
        let mut all: Vec<PathBuf> = parents.map(Path::to_owned).chain(directories).collect();
        all.sort();
        for directory in all.into_iter().filter(|directory| !directory.as_os_str().is_empty()) {
            if made.insert(directory.clone()) {
                let mode = if directory == Path::new("tmp") { 0o1777 } else { 0o755 };
                let mut header = header(tar::EntryType::Directory, 0, mode);
                layer.append_data(&mut header, &directory, std::io::empty())?;
            }
        }
        for (at, file) in &self.files {
            let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            let mut header = header(tar::EntryType::Regular, bytes.len() as u64, 0o755);
            layer.append_data(&mut header, at, bytes.as_slice())?;
        }
        Ok(layer.into_inner()?)
    }
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

fn append(archive: &mut tar::Builder<BufWriter<File>>, at: &str, bytes: &[u8]) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, bytes.len() as u64, 0o644);
    archive.append_data(&mut header, at, bytes)?;
    Ok(())
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// The machine's architecture by Go's name.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The files that a program is linked against, its loader among them; none for a static one.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let finished = Cmd::new("ldd").arg(program).env("LC_ALL", "C").run()?;
    let text = finished.stdout_text() + &finished.stderr_text();
    if text.contains("not a dynamic executable") || text.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !finished.status.success() {
        bail!("ldd cannot tell what {} is linked against: {text}", program.display());
    }
    parse_ldd(&text).with_context(|| format!("what {} is linked against", program.display()))
}

/// Lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f...)` and `/lib64/ld-linux.so.2 (0x7f...)`.
fn parse_ldd(text: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.contains("=> not found") {
            bail!("a library is missing: {line}");
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // The kernel's own page of code (vdso) has no path.
        let path = match words.as_slice() {
            [_, "=>", path, ..] => path,
            [path, ..] => path,
            [] => continue,
        };
        if path.starts_with('/') {
            found.push((*path).to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_found() {
        let text =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux.so.2 (0x3)\n";
        assert_eq!(parse_ldd(text).unwrap(), ["/lib/x/libc.so.6", "/lib64/ld-linux.so.2"]);
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
    }

    #[test]
    fn a_program_with_libraries_is_not_taken_for_static() {
        // The test itself is linked dynamically, as every program of this target is.
        let program = std::env::current_exe().unwrap();
        let error = Image::new(&["/lab"]).static_program("/lab", &program).unwrap_err();
        assert!(error.to_string().contains("is not static, it needs"), "{error}");
    }

    #[test]
    fn an_archive_names_its_image_and_holds_every_blob_by_its_digest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        let image = Image::new(&["/sh"]).program("/sh", Path::new("/bin/sh")).unwrap();
        image.write("example.org/lab/sh:1", &path).unwrap();
        let mut archive = tar::Archive::new(File::open(&path).unwrap());
        let mut blobs = 0;
        let mut index = String::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(digest(&bytes), format!("sha256:{hex}"));
                blobs += 1;
            } else if name == "index.json" {
                index = String::from_utf8(bytes).unwrap();
            }
        }
        assert_eq!(blobs, 3);
        assert!(index.contains(r#""io.containerd.image.name":"example.org/lab/sh:1""#), "{index}");
        // The same bytes every time: an image that has not changed is not imported anew.
        let again = directory.path().join("again.tar");
        image.write("example.org/lab/sh:1", &again).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
    }
}
