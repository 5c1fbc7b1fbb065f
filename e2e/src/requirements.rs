//! What the lab needs of the machine, and installing what is missing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::Cmd;
use crate::screen::Screen;

/// A Debian package and a file by which its presence is seen.
struct Package {
    name: &'static str,
    file: &'static str,
}

const PACKAGES: [Package; 8] = [
    Package { name: "iproute2", file: "/sbin/ip" },
    Package { name: "nftables", file: "/usr/sbin/nft" },
    Package { name: "iptables", file: "/usr/sbin/iptables-legacy-restore" },
    Package { name: "conntrack", file: "/usr/sbin/conntrack" },
    Package { name: "containernetworking-plugins", file: "/usr/lib/cni/host-local" },
    Package { name: "tcpdump", file: "/usr/bin/tcpdump" },
    Package { name: "iputils-ping", file: "/usr/bin/ping" },
    Package { name: "faketime", file: "/usr/bin/faketime" },
];

/// What an API server alone takes besides.
const KUBE_API: [Package; 1] = [Package { name: "etcd-server", file: "/usr/bin/etcd" }];

/// What clusters take besides.
const KUBE: [Package; 2] = [
    Package { name: "containerd", file: "/usr/bin/containerd" },
    Package { name: "runc", file: "/usr/sbin/runc" },
];

/// What static programs take besides: a C compiler for aws-lc.
const STATIC: [Package; 1] = [Package { name: "musl-tools", file: "/usr/bin/musl-gcc" }];

/// What the bench takes besides.
const BENCH: [Package; 1] = [Package { name: "iperf3", file: "/usr/bin/iperf3" }];

/// How long the package manager may take, other runs of it included.
const INSTALL: Duration = Duration::from_secs(540);

/// Checks that the lab can run here, and installs the packages that are missing.
pub(crate) fn ensure(screen: &Screen) -> Result<()> {
    ensure_packages(&PACKAGES, screen)
}

/// The same for an API server alone.
pub(crate) fn ensure_kube_api(screen: &Screen) -> Result<()> {
    ensure(screen)?;
    ensure_packages(&KUBE_API, screen)
}

/// The same for clusters.
pub(crate) fn ensure_kube(screen: &Screen) -> Result<()> {
    ensure_kube_api(screen)?;
    ensure_packages(&KUBE, screen)
}

/// The same for the bench.
pub(crate) fn ensure_bench(screen: &Screen) -> Result<()> {
    ensure(screen)?;
    ensure_packages(&BENCH, screen)
}

/// The same for building static programs, which needs no root once the compiler is there.
pub(crate) fn ensure_static_compiler(screen: &Screen) -> Result<()> {
    if missing(&STATIC, Path::new("/")).is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("static programs take a C compiler that is missing; as root: apt-get install musl-tools");
    }
    ensure_packages(&STATIC, screen)
}

/// Installs one package.
pub(crate) fn install_package(name: &str) -> Result<()> {
    install(&[name])
}

fn ensure_packages(packages: &[Package], screen: &Screen) -> Result<()> {
    ensure_root()?;
    let missing = missing(packages, Path::new("/"));
    if missing.is_empty() {
        let names: Vec<_> = packages.iter().map(|package| package.name).collect();
        screen.line(&format!("the Debian packages are there: {}", names.join(" ")));
        return Ok(());
    }
    let list = missing.join(" ");
    screen.line(&format!("installing the Debian packages that are missing: {list}"));
    install(&missing).with_context(|| {
        format!("the packages could not be installed; by hand: apt-get update && apt-get install -y --no-install-recommends {list}")
    })?;
    let still = self::missing(packages, Path::new("/"));
    if !still.is_empty() {
        bail!("after the installation these are still missing: {}", still.join(" "));
    }
    Ok(())
}

/// The lab makes network namespaces, which takes root.
pub(crate) fn ensure_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces and must be run as root: use sudo, or a root shell");
    }
    Ok(())
}

fn missing(packages: &[Package], root: &Path) -> Vec<&'static str> {
    let is_missing = |package: &&Package| {
        let below = package.file.trim_start_matches('/');
        // With a merged /usr the file is seen in both places; without, in one of them.
        !root.join(below).exists() && !root.join("usr").join(below).exists()
    };
    packages.iter().filter(is_missing).map(|package| package.name).collect()
}

fn install(names: &[&str]) -> Result<()> {
    let apt = |args: &[&str]| {
        Cmd::new("apt-get")
            .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .timeout(INSTALL)
            .run_ok()
    };
    let install: Vec<&str> =
        ["install", "-y", "--no-install-recommends"].into_iter().chain(names.iter().copied()).collect();
    // A fresh machine has no lists yet, an old one may have outdated ones.
    if apt(&install).is_err() {
        apt(&["update"])?;
        apt(&install)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_is_missing() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(missing(&PACKAGES, root.path()).len(), PACKAGES.len());
        let sbin = root.path().join("usr/sbin");
        std::fs::create_dir_all(&sbin).unwrap();
        for file in ["ip", "nft"] {
            std::fs::write(sbin.join(file), "").unwrap();
        }
        let missing = missing(&PACKAGES, root.path());
        assert!(!missing.contains(&"iproute2") && !missing.contains(&"nftables"), "{missing:?}");
        assert!(missing.contains(&"tcpdump"));
    }
}
