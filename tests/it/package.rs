//! The Debian package, made from the binary under test: what is in it, and that its parts fit together without an installation.
//!
//! What needs root and a machine (its user, its service, an upgrade that keeps the edited configuration) is not tried here. Nor is a
//! container built, which takes base images: what `conf/Containerfile` does between them is.

use crate::support::cli::shown;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The package, unpacked.
struct Unpacked {
    directory: TempDir,
}

impl Unpacked {
    /// Does what `make deb` does, but for the build.
    fn make() -> Unpacked {
        let tool = root().join("target/tools/bin/cargo-deb");
        assert!(tool.is_file(), "cargo-deb is not in {}: run `make test`, which installs it", tool.display());
        let directory = tempfile::tempdir().unwrap();
        let release = directory.path().join("release");
        fs::create_dir(&release).unwrap();
        let weir = release.join("weir");
        run(Command::new("strip").arg("-o").arg(&weir).arg(env!("CARGO_BIN_EXE_weir")));
        run(Command::new("make")
            .arg("--no-print-directory")
            .arg("package")
            .arg(format!("WEIR={}", weir.display()))
            .env_remove("MAKEFLAGS")
            .current_dir(root()));
        let file = directory.path().join("weir.deb");
        run(Command::new(tool)
            .args(["--locked", "--offline", "--no-build", "--no-strip", "--fast", "--output"])
            .arg(&file)
            .env("CARGO_TARGET_DIR", directory.path())
            .current_dir(root()));
        run(Command::new("dpkg-deb").arg("-R").arg(&file).arg(directory.path().join("unpacked")));
        Unpacked { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("unpacked").join(name)
    }

    #[track_caller]
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", shown(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_package_has_all_that_a_service_needs_and_its_configuration_is_good() {
    let package = Unpacked::make();
    for name in [
        "usr/bin/weir",
        "usr/lib/systemd/system/weir.service",
        "usr/lib/sysusers.d/weir.conf",
        "usr/share/man/man1/weir.1.gz",
        "usr/share/man/man1/weir-key-create.1.gz",
        "usr/share/bash-completion/completions/weir",
        "usr/share/zsh/vendor-completions/_weir",
        "usr/share/fish/vendor_completions.d/weir.fish",
        "usr/share/doc/weir/copyright",
        "usr/share/doc/weir/changelog.Debian.gz",
        "usr/share/weir/prices.toml",
        "usr/share/weir/grafana/weir.json",
        "usr/share/weir/prometheus/weir.rules.yml",
    ] {
        assert!(package.path(name).is_file(), "{name} is in the package");
    }
    assert_eq!(package.text("DEBIAN/conffiles").trim(), "/etc/weir/weir.toml", "an edited one is kept");
    let control = package.text("DEBIAN/control");
    for line in ["Package: weir", "ca-certificates", "libc6 ("] {
        assert!(control.contains(line), "{line} in {control}");
    }
    the_scripts_name_what_is_there(&package);
    the_unit_starts_what_is_packaged(&package);
    the_configuration_is_that_of_a_service(&package);
}

fn the_scripts_name_what_is_there(package: &Unpacked) {
    let (postinst, postrm) = (package.text("DEBIAN/postinst"), package.text("DEBIAN/postrm"));
    assert!(
        postinst.contains(r#"systemd-sysusers ${DPKG_ROOT:+--root="$DPKG_ROOT"} weir.conf"#),
        "{postinst}"
    );
    assert!(postinst.contains("deb-systemd-helper enable weir.service"), "{postinst}");
    for script in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(package.path(&format!("DEBIAN/{script}"))));
        let text = package.text(&format!("DEBIAN/{script}"));
        assert!(!text.contains("deb-systemd-invoke restart"), "an upgrade cuts no stream: {text}");
        assert!(!text.contains("#DEBHELPER#"), "{text}");
    }
    assert!(!postrm.contains("rm -r"), "money is not removed with a package: {postrm}");
}

fn the_unit_starts_what_is_packaged(package: &Unpacked) {
    let unit = package.text("usr/lib/systemd/system/weir.service");
    let settings: BTreeMap<&str, &str> = unit.lines().filter_map(|line| line.split_once('=')).collect();
    for key in ["ExecStart", "ExecStartPre"] {
        let command = settings.get(key).unwrap_or_else(|| panic!("{key} in {unit}"));
        assert!(command.contains("/usr/bin/weir") && command.contains("/etc/weir/weir.toml"), "{command}");
    }
    assert_eq!(settings.get("User"), Some(&"weir"), "the user of sysusers.d: {unit}");
    assert!(package.text("usr/lib/sysusers.d/weir.conf").starts_with("u weir "));
}

/// The reference with a service's paths, read by the packaged binary from elsewhere.
fn the_configuration_is_that_of_a_service(package: &Unpacked) {
    let config = package.text("etc/weir/weir.toml");
    assert_eq!(changed(&config), ["url", "pepper", "dir", "api_key"]);

    // The same with the state and the key below the scratch root, since nothing here may write to /var/lib and /etc.
    let (state, etc) = (package.path("var/lib/weir"), package.path("etc/weir"));
    fs::create_dir_all(&state).unwrap();
    fs::create_dir_all(etc.join("credentials")).unwrap();
    let here = etc.join("here.toml");
    let config = config.replace("/var/lib/weir", state.to_str().unwrap());
    fs::write(&here, config.replace("/etc/weir", etc.to_str().unwrap())).unwrap();
    let check = || {
        let mut weir = Command::new(package.path("usr/bin/weir"));
        weir.arg("--config").arg(&here).arg("check").current_dir("/").output().unwrap()
    };
    let missing = check();
    assert_eq!(missing.status.code(), Some(3), "{}", shown(&missing));
    assert!(
        shown(&missing).contains("/credentials/openai"),
        "the one thing that is left to do is told: {}",
        shown(&missing)
    );
    fs::write(etc.join("credentials/openai"), "sk-test").unwrap();
    let checked = check();
    assert!(checked.status.success(), "{}", shown(&checked));
    assert!(state.join("weir.db").is_file());
}

/// The keys that a configuration sets and the reference does not, or sets to something else.
fn changed(config: &str) -> Vec<&str> {
    let reference = fs::read_to_string(root().join("conf/weir.toml")).unwrap();
    assert_eq!(config.lines().count(), reference.lines().count());
    let pairs = config.lines().zip(reference.lines());
    pairs.filter(|(own, other)| own != other).map(|(own, _)| own.split(" = ").next().unwrap()).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_container_is_made_of_what_is_sent_to_its_build_and_its_configuration_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let context = directory.path().join("src");
    let ignored = fs::read_to_string(root().join(".dockerignore")).unwrap();
    for sent in ignored.lines().filter_map(|line| line.strip_prefix('!')) {
        let path = context.join(sent);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(root().join(sent), path).unwrap();
    }
    run(Command::new("cargo")
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(&context));
    let release = context.join("target/release");
    fs::create_dir_all(&release).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_weir"), release.join("weir")).unwrap();
    run(Command::new("make")
        .args(["--no-print-directory", "package", "SOURCE_DATE_EPOCH=0"])
        .env_remove("MAKEFLAGS")
        // Where this suite was built is not where a container builds.
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(&context));

    let containerfile = fs::read_to_string(root().join("conf/Containerfile")).unwrap();
    let copied: Vec<&str> = containerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY --from=build /src/")?.split(' ').next())
        .collect();
    assert_eq!(copied, ["target/release/weir", "target/release/package/container.toml"]);
    let config = fs::read_to_string(context.join(copied[1])).unwrap();
    assert_eq!(changed(&config), ["listen", "plain_http", "url", "pepper", "dir"]);

    let (state, here) = (directory.path().join("state"), directory.path().join("here.toml"));
    fs::create_dir(&state).unwrap();
    fs::write(&here, config.replace("/var/lib/weir", state.to_str().unwrap())).unwrap();
    let mut weir = Command::new(context.join(copied[0]));
    weir.arg("--config").arg(&here).arg("check").env("OPENAI_API_KEY", "sk-test").current_dir("/");
    run(&mut weir);
    assert!(state.join("weir.db").is_file());
}
