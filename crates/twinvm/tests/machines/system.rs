//! What the machines are made of: a Debian 12 system with the packages that the page has installed, and a disk with what else the page takes for granted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use storage::image::{ExtraFile, Image, ImageSpec, ImageStore, Init};
use tempfile::TempDir;

use crate::support::emulated::SHELL;
use crate::support::emulated::disk::{copy_image, copy_program, make, run};
use crate::support::guest::{image, images_dir};

/// What is installed before the page is followed, as packages come from outside, which the machines do not reach; and curl, by which the test asks etcd.
const PACKAGES: [&str; 5] = ["curl", "etcd-server", "iproute2", "libslirp0", "openssh-server"];
/// Size of a machine's disk in bytes; what is not used takes no space.
const ROOT_DISK_BYTES: u64 = 8 << 30;
/// Size of the second disk in bytes.
const JOB_DISK_BYTES: u64 = 8 << 30;

/// The root shell, and what it needs: the second disk, whose images are the host's.
const FILES: [(&str, &str); 5] = [
    ("/etc/systemd/system/job.mount", "[Mount]\nWhat=/dev/vdb\nWhere=/job\nType=ext4\n"),
    (
        "/etc/systemd/system/var-lib-twinvm-images.mount",
        "[Unit]\nRequiresMountsFor=/job\n\n[Mount]\nWhat=/job/images\nWhere=/var/lib/twinvm/images\nType=none\nOptions=bind\n",
    ),
    (
        "/etc/systemd/system/machine-shell.service",
        "[Unit]\nDescription=Root shell of the test\nRequires=job.mount var-lib-twinvm-images.mount\nAfter=job.mount var-lib-twinvm-images.mount\n\n\
      [Service]\nWorkingDirectory=/root\nEnvironment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb\n\
      ExecStart=/bin/bash -c 'ln -sfn /job/target . && . /job/shell'\nKillMode=process\n",
    ),
    // Without an RSA key, which takes a machine of this kind a minute.
    (
        "/etc/systemd/system/twinvm-keys.service.d/machine.conf",
        "[Service]\nExecStart=\n\
         ExecStart=/bin/sh -c 'rm -f /etc/ssh/ssh_host_* && ssh-keygen -q -t ed25519 -N \"\" -f /etc/ssh/ssh_host_ed25519_key && touch /etc/twinvm/keys-made'\n",
    ),
    ("/etc/systemd/system/multi-user.target.d/machine.conf", "[Unit]\nWants=machine-shell.service\n"),
];

/// Builds the machines' system, or finds it built.
pub fn system() -> Image {
    let file = |(path, text): (&str, &str)| ExtraFile {
        path: path.to_owned(),
        contents: text.as_bytes().to_vec(),
        mode: 0o644,
    };
    image(&ImageSpec {
        packages: PACKAGES.map(str::to_owned).to_vec(),
        recommends: false,
        kernel: "linux-image-amd64".to_owned(),
        root_disk_bytes: Some(ROOT_DISK_BYTES),
        init: Init::Systemd,
        files: FILES.map(file).to_vec(),
        ..ImageSpec::new("test-machine")
    })
}

/// Makes the second disk in `folder`: the program where `make build` puts it, and what `twinvm image build` needs to find the images `names` built.
pub fn job(names: &[&str], folder: &Path) -> PathBuf {
    let tree = TempDir::new_in(folder).unwrap();
    let program = tree.path().join("target/release/twinvm");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    copy_program(Path::new(env!("CARGO_BIN_EXE_twinvm")), &program);
    fs::write(tree.path().join("shell"), SHELL).unwrap();
    let images = tree.path().join("images");
    fs::create_dir_all(images.join(".cache")).unwrap();
    for name in names {
        copy_image(&ImageStore::new(images_dir()).get(name).unwrap(), &images);
    }
    // The lists of packages, by which an image is known to be up to date; not the packages.
    let lists = Path::new(".cache/apt-bookworm");
    run(Command::new("cp").arg("-r").arg(images_dir().join(lists)).arg(images.join(".cache")));
    fs::remove_dir_all(images.join(lists).join("archives")).unwrap();
    let disk = folder.join("job.img");
    make(tree.path(), &disk, JOB_DISK_BYTES);
    disk
}
