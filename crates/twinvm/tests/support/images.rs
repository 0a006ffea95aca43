//! The images of all tests with guests.

use storage::image::{ImageSpec, Init};

/// Debian with a service and what it depends on, under the light init.
pub fn service(name: &str, package: &str) -> ImageSpec {
    ImageSpec { packages: vec![package.to_owned()], recommends: false, ..ImageSpec::new(name) }
}

/// Redis.
pub fn redis() -> ImageSpec {
    service("test-redis", "redis-server")
}

/// Redis, which writes every change to its append-only file before it answers.
pub fn redis_append_only() -> ImageSpec {
    ImageSpec { redis_append_only: true, ..service("test-redis-append-only", "redis-server") }
}

/// PostgreSQL.
pub fn postgresql() -> ImageSpec {
    service("test-postgresql", "postgresql")
}

/// nginx.
pub fn nginx() -> ImageSpec {
    service("test-nginx", "nginx")
}

/// Redis under systemd.
pub fn systemd() -> ImageSpec {
    ImageSpec { init: Init::Systemd, ..service("test-systemd", "redis-server") }
}

/// Debian's 6.12 kernel and no disk.
pub fn kernel_6_12() -> ImageSpec {
    ImageSpec {
        kernel: "linux-image-6.12-cloud-amd64".to_owned(),
        root_disk_bytes: None,
        ..ImageSpec::new("test-kernel-6-12")
    }
}

/// Debian's 6.1 kernel and no disk.
pub fn tiny() -> ImageSpec {
    ImageSpec { root_disk_bytes: None, ..ImageSpec::new("test-tiny") }
}
