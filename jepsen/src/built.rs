//! The programs that are run: that of the nodes, and what migrates a store.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The executable beside this one, of the package of its name. Under cargo it is built first, so that a run never tests an old one.
/// One with features has the simulation's profile, with which it shares what it depends on, and lies in a directory
/// of its own.
pub(crate) fn built(name: &str, features: &[&str]) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let mut path = own.with_file_name(name);
    let is_release = own.parent().is_some_and(|d| d.ends_with("release"));
    let cargo = std::env::var_os("CARGO");
    if !features.is_empty() {
        let target = own
            .parent()
            .and_then(Path::parent)
            .context("no target directory")?;
        path = target.join("mutants/sim").join(name);
    }
    if let Some(cargo) = cargo {
        let mut build = Command::new(cargo);
        build.args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            name,
            "--bin",
            name,
        ]);
        build.args(features);
        if !features.is_empty() {
            let target = path
                .parent()
                .and_then(Path::parent)
                .context("no target directory")?;
            build.args(["--profile", "sim", "--target-dir"]).arg(target);
        } else if is_release {
            build.arg("--release");
        }
        ensure!(build.status()?.success(), "{name} does not build");
    }
    ensure!(
        path.is_file(),
        "{} is missing: build {name}, or name rmq with --rmq",
        path.display()
    );
    Ok(path)
}
