//! The binary that is installed on nodes is static: it runs on any of them, whatever their libc.
//!
//! Builds it as the README says: `cargo build --profile cni -p podspan-cni --target ARCH-unknown-linux-musl`;
//! needs `rustup target add ARCH-unknown-linux-musl`.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::PathBuf;
use std::process::Command;

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

/// The types of the program headers of a 64-bit little-endian ELF file (System V ABI, chapter 5).
fn program_headers(elf: &[u8]) -> Vec<u32> {
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file");
    let half = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
    let offset = usize::try_from(u64::from_le_bytes(elf[32..40].try_into().unwrap())).unwrap();
    let (size, count) = (half(54), half(56));
    (0..count).map(|i| u32::from_le_bytes(elf[offset + i * size..][..4].try_into().unwrap())).collect()
}

#[test]
fn the_installed_binary_is_static_and_small_and_runs() {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["build", "--profile", "cni", "-p", "podspan-cni", "--bin", "podspan-cni", "--target", &target])
        .args(["--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "is the target there? `rustup target add {target}`\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let binary: PathBuf = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).unwrap();
            message["executable"].as_str().map(PathBuf::from)
        })
        .next_back()
        .unwrap();

    let elf = std::fs::read(&binary).unwrap();
    let headers = program_headers(&elf);
    assert!(!headers.contains(&PT_INTERP), "it asks for a dynamic linker: {headers:?}");
    // A static position-independent binary has PT_DYNAMIC for its own relocations; no library is named.
    let needed = Command::new("readelf").args(["--dynamic", "--wide"]).arg(&binary).output();
    if headers.contains(&PT_DYNAMIC) {
        let needed = String::from_utf8(needed.unwrap().stdout).unwrap();
        assert!(!needed.contains("NEEDED"), "{needed}");
    }
    println!("{}: {} bytes", binary.display(), elf.len());
    assert!(elf.len() < 1_500_000, "{} bytes", elf.len());

    let version = Command::new(&binary).env("CNI_COMMAND", "VERSION").output().unwrap();
    assert!(version.status.success());
    assert!(String::from_utf8(version.stdout).unwrap().contains("supportedVersions"));
}
