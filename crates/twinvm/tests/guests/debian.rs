//! What Debian's packages leave in an image: programs and services that are as after `apt-get install`, and machines that can be told apart.

use std::thread;
use std::time::{Duration, Instant};

use storage::image::{ExtraFile, ImageSpec, Init, Suite};

use super::vm::RunningVm;
use super::{client, succeeds};
use crate::support::guest::image;
use crate::support::images;

/// Where a script of an image says that it is done.
const DONE: &str = "twinvm: guest ready";

/// An image whose guest runs a shell script at the end of each boot, its output on the console.
fn with_script(spec: ImageSpec, script: &str) -> ImageSpec {
    let mut files = vec![ExtraFile {
        path: "/usr/local/sbin/check".to_owned(),
        contents: format!("#!/bin/bash\n{script}\n").into_bytes(),
        mode: 0o755,
    }];
    files.push(match spec.init {
        Init::Light => ExtraFile {
            path: "/etc/twinvm/services.d/99-check".to_owned(),
            contents: b"/usr/local/sbin/check > /dev/ttyS0 2>&1\n".to_vec(),
            mode: 0o755,
        },
        Init::Systemd => ExtraFile {
            path: "/etc/systemd/system/twinvm-ready.service.d/check.conf".to_owned(),
            contents: b"[Service]\nTimeoutStartSec=infinity\nExecStartPre=/usr/local/sbin/check\n".to_vec(),
            mode: 0o644,
        },
    });
    ImageSpec { files, ..spec }
}

/// What stands behind `name` on the last line of a console that has it; a shell's prompt may stand before it.
fn said(vm: &RunningVm, name: &str) -> String {
    let console = vm.console();
    let found = console.lines().filter_map(|line| line.split_once(name)).next_back();
    found.unwrap_or_else(|| panic!("no line with {name} in:\n{console}")).1.trim().to_owned()
}

/// Alternatives, libraries behind alternatives, and a compiler with what it needs: none was there when scripts of packages did not run.
#[test]
#[ignore = "takes minutes; part of make soak"]
fn debian_row_12_programs_of_packages_run_as_after_apt_get_install() {
    const PROGRAMS: [&str; 7] = [
        "vim --version",
        "editor --version",
        "java -version",
        "python3 -c 'import numpy; assert numpy.dot([1, 2], [3, 4]) == 11'",
        "iptables -L -n",
        "(echo 'int puts(const char*); int main(void) { return puts(\"x\") < 0; }' > /tmp/x.c && cc -o /tmp/x /tmp/x.c && /tmp/x)",
        "php -r 'exit(40 + 2 == 42 ? 0 : 1);'",
    ];
    let script: String = PROGRAMS
        .iter()
        .enumerate()
        .map(|(number, program)| {
            format!("{program} > /tmp/out 2>&1 && echo \"runs: {number}\" || {{ echo \"fails: {number}\"; tail -n 3 /tmp/out; }}\n")
        })
        .collect();
    let packages = ["vim", "openjdk-17-jre-headless", "python3-numpy", "iptables", "gcc", "php-cli"];
    let spec = ImageSpec { packages: packages.map(str::to_owned).to_vec(), ..ImageSpec::new("test-programs") };
    image(&with_script(spec, &script));
    let vm = RunningVm::start("programs", "test-programs", "1G", 1, &[]);
    vm.wait_for_console(DONE);
    let console = vm.console();
    for (number, program) in PROGRAMS.iter().enumerate() {
        assert!(console.contains(&format!("runs: {number}")), "{program}:\n{console}");
    }
}

/// What tells a machine from others, on its console.
const IDENTITY: &str = "echo \"machine-id: $(cat /etc/machine-id)\"; echo \"host name: $(hostname)\"; \
                        echo \"key: $(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)\"";

fn identity(vm: &RunningVm) -> [String; 3] {
    ["machine-id: ", "host name: ", "key: "].map(|name| said(vm, name))
}

#[test]
#[ignore = "takes minutes; part of make soak"]
fn debian_row_13_two_vms_of_a_systemd_image_are_two_machines_and_stay_what_they_are() {
    let spec = ImageSpec { init: Init::Systemd, ..images::service("test-machines", "openssh-server") };
    image(&with_script(spec, IDENTITY));
    let start = |name: &str| {
        let vm = RunningVm::start(name, "test-machines", "512M", 1, &[]);
        vm.wait_for_console(DONE);
        vm
    };
    let first = start("first");
    let known = identity(&first);
    assert_eq!((known[0].len(), known[1].as_str()), (32, "first"));
    assert!(known[2].contains("SHA256:"), "{known:?}");
    let second = identity(&start("second"));
    assert!(known.iter().zip(&second).all(|(first, second)| first != second), "{known:?} {second:?}");
    // Its power is taken right after its first boot.
    let again = first.cut_power_and_start();
    again.wait_for_console(DONE);
    assert_eq!(identity(&again), known);
}

/// A clone has the disks of its original, and an ID of its own.
#[test]
#[ignore = "takes minutes; part of make soak"]
fn debian_row_13_a_disk_in_a_vm_with_another_id_makes_another_machine() {
    const IDS: [&str; 2] = ["5d0c9f3e1b7a4c6d8e2f0a1b3c5d7e9f", "00f3a0b15c2d4e6f8a9b0c1d2e3f4a5b"];
    image(&with_script(images::service("test-ssh", "openssh-server"), IDENTITY));
    let mut vm = RunningVm::start_as("original", Some(IDS[0]), "test-ssh", "256M", 1, &[22]);
    vm.wait_for_console(DONE);
    let original = identity(&vm);
    assert_eq!(original[..2], [IDS[0], "original"]);
    vm = vm.cut_power_and_start();
    vm.wait_for_console(DONE);
    assert_eq!(identity(&vm), original);
    vm.replace_in_spec(IDS[0], IDS[1]);
    vm.replace_in_spec("original", "copy");
    vm = vm.cut_power_and_start();
    vm.wait_for_console(DONE);
    let copy = identity(&vm);
    assert_eq!(copy[..2], [IDS[1], "copy"]);
    assert_ne!(copy[2], original[2]);
}

/// Its configuration was written at the first boot, and ended in NULs.
#[test]
fn row_15_postgresql_starts_again_after_the_power_went_right_after_its_first_boot() {
    image(&images::postgresql());
    let vm = RunningVm::start("postgresql-cut", "test-postgresql", "512M", 1, &[5432]);
    let port = vm.port(5432).to_string();
    let answers = || succeeds("psql", &["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-c", "select 1"]);
    vm.wait_until("PostgreSQL answers", answers);
    let vm = vm.cut_power_and_start();
    vm.wait_until("PostgreSQL answers again", answers);
    let data = client("psql", &["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-tAc", "show data_directory"]);
    assert!(data.trim().starts_with("/var/lib/postgresql/") && data.trim().ends_with("/main"), "{data}");
}

#[test]
#[ignore = "takes minutes; part of make soak"]
fn redis_of_debian_13_serves() {
    let image = image(&ImageSpec { suite: Suite::Trixie, ..images::service("test-trixie", "redis-server") });
    assert!(image.manifest().kernel.release.starts_with("6.12."), "{:?}", image.manifest().kernel);
    let vm = RunningVm::start("trixie", "test-trixie", "256M", 1, &[6379]);
    let port = vm.port(6379).to_string();
    vm.wait_until("Redis answers", || succeeds("redis-cli", &["-e", "-p", &port, "ping"]));
    vm.shut_down();
}

/// How it shows that a service works.
enum Check {
    /// systemd says that this unit is active.
    Active(&'static str),
    /// Who connects to this TCP port is greeted with this.
    Greets(u16, &'static str),
    /// Somebody listens at this TCP port.
    Listens(u16),
    /// There is a page at this port.
    Serves(u16, &'static str),
    /// This command succeeds.
    Runs(&'static str),
}

impl Check {
    fn command(&self) -> String {
        match self {
            Self::Active(unit) => format!("systemctl is-active {unit}"),
            Self::Greets(port, text) => {
                format!("read -r -t 60 line < /dev/tcp/127.0.0.1/{port} && [[ $line == '{text}'* ]]")
            }
            Self::Listens(port) => format!("exec 3<> /dev/tcp/127.0.0.1/{port}"),
            Self::Serves(port, path) => format!("busybox wget -q -O /dev/null http://127.0.0.1:{port}{path}"),
            Self::Runs(command) => (*command).to_owned(),
        }
    }
}

/// Debian's most used server packages that serve as they are installed, those of an image together: no two of one want the same port or replace each other.
const SERVERS: [[(&str, Check); 8]; 5] = [
    [
        ("apache2", Check::Serves(80, "/")),
        ("avahi-daemon", Check::Active("avahi-daemon")),
        ("beanstalkd", Check::Listens(11300)),
        ("bind9", Check::Runs("rndc status")),
        ("chrony", Check::Runs("chronyc activity")),
        ("cron", Check::Active("cron")),
        ("cups", Check::Listens(631)),
        ("dovecot-imapd", Check::Greets(143, "* OK")),
    ],
    [
        ("dnsmasq", Check::Listens(53)),
        ("docker.io", Check::Runs("docker info")),
        ("etcd-server", Check::Serves(2379, "/health")),
        ("exim4-daemon-light", Check::Greets(25, "220 ")),
        ("freeradius", Check::Active("freeradius")),
        ("gearman-job-server", Check::Listens(4730)),
        ("haproxy", Check::Active("haproxy")),
        ("lighttpd", Check::Serves(80, "/")),
    ],
    [
        ("lldpd", Check::Active("lldpd")),
        ("mariadb-server", Check::Runs("mariadb -e 'select 1'")),
        ("memcached", Check::Listens(11211)),
        ("monit", Check::Active("monit")),
        ("mosquitto", Check::Listens(1883)),
        ("munin-node", Check::Listens(4949)),
        ("nginx", Check::Serves(80, "/")),
        ("openssh-server", Check::Greets(22, "SSH-2.0-")),
    ],
    [
        ("php-fpm", Check::Active("php8.2-fpm")),
        ("postfix", Check::Greets(25, "220 ")),
        ("postgresql", Check::Runs("runuser -u postgres -- psql -c 'select 1'")),
        ("prometheus", Check::Serves(9090, "/-/ready")),
        ("prometheus-node-exporter", Check::Serves(9100, "/metrics")),
        ("proftpd-core", Check::Greets(21, "220 ")),
        ("redis-server", Check::Runs("redis-cli ping")),
        ("rsyslog", Check::Runs("logger twinvm-check && sleep 1 && grep -q twinvm-check /var/log/syslog")),
    ],
    [
        ("rabbitmq-server", Check::Listens(5672)),
        ("samba", Check::Listens(445)),
        ("slapd", Check::Listens(389)),
        ("snmpd", Check::Active("snmpd")),
        ("squid", Check::Listens(3128)),
        ("tomcat10", Check::Listens(8080)),
        ("unbound", Check::Listens(53)),
        ("vsftpd", Check::Greets(21, "220 ")),
    ],
];

/// Tries each check again and again for some minutes, and says how it ended.
fn script_of(servers: &[(&str, Check)]) -> String {
    let mut script = "check() {\n\
                      for try in $(seq 150); do\n\
                      (eval \"$2\") > /tmp/check 2>&1 && { echo \"server: $1: good\"; return; }\n\
                      sleep 2\n\
                      done\n\
                      echo \"server: $1: bad\"; cat /tmp/check\n}\n"
        .to_owned();
    for (package, check) in servers {
        let command = check.command().replace('\'', "'\\''");
        script += &format!("check {package} '{command}'\n");
    }
    script + "systemctl --failed --no-legend; exit 0"
}

/// Each is installed and started as its maintainers have it, under systemd, and found to work.
fn servers_serve(group: usize) {
    let (name, servers) = (format!("test-servers-{group}"), &SERVERS[group]);
    let packages = servers.iter().map(|(package, _)| (*package).to_owned()).collect();
    let spec = ImageSpec { init: Init::Systemd, packages, root_disk_bytes: Some(8 << 30), ..ImageSpec::new(&name) };
    let mut spec = with_script(spec, &script_of(servers));
    spec.files.push(ExtraFile {
        path: "/etc/systemd/system.conf.d/slow.conf".to_owned(),
        contents: b"# Eight servers start at once, on a processor that is interpreted.\n[Manager]\nDefaultTimeoutStartSec=900\n".to_vec(),
        mode: 0o644,
    });
    image(&spec);
    let start = Instant::now();
    let vm = RunningVm::start("servers", &name, "2G", 1, &[]);
    while !vm.console().contains(DONE) {
        assert!(start.elapsed() < SERVERS_START, "{}", vm.console());
        thread::sleep(Duration::from_millis(500));
    }
    let console = vm.console();
    let verdicts: Vec<&str> =
        console.lines().filter_map(|line| line.split_once("server: ")).map(|(_, said)| said).collect();
    eprintln!("{:?}: {verdicts:?}", start.elapsed());
    for (package, _) in servers {
        assert!(verdicts.contains(&format!("{package}: good").as_str()), "{package}:\n{console}");
    }
}

/// How long eight servers may take to start, on a processor that is interpreted.
const SERVERS_START: Duration = Duration::from_secs(1800);

#[test]
#[ignore = "takes minutes; part of make soak"]
fn debian_servers_from_apache_to_dovecot_serve_as_installed() {
    servers_serve(0);
}

#[test]
#[ignore = "takes minutes; part of make soak"]
fn debian_servers_from_dnsmasq_to_lighttpd_serve_as_installed() {
    servers_serve(1);
}

#[test]
#[ignore = "takes minutes; part of make soak"]
fn debian_servers_from_lldpd_to_openssh_serve_as_installed() {
    servers_serve(2);
}

#[test]
#[ignore = "takes minutes; part of make soak"]
fn debian_servers_from_php_to_rsyslog_serve_as_installed() {
    servers_serve(3);
}

#[test]
#[ignore = "takes minutes; part of make soak"]
fn debian_servers_from_rabbitmq_to_vsftpd_serve_as_installed() {
    servers_serve(4);
}
