//! `twinvm cluster etcd`: what three machines need to run an etcd for a cluster, as files: certificates, the configuration of each member, and a systemd unit.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use replication::channel::{create_authority, issue_member};
use spec::HostName;

use super::etcd_access::ROOT_PASSWORD;
use super::folder::{private_folder, write_private};
use super::token::random_text;

/// The file with the store's address.
const ADDRESS: &str = "address";
/// Where the members' files are to be on their machines, unless another folder is chosen.
pub const MEMBER_FOLDER_DEFAULT: &str = "/etc/twinvm/etcd";
/// Where members keep their data, unless another folder is chosen: what the unit's `StateDirectory` makes.
pub const DATA_FOLDER_DEFAULT: &str = "/var/lib/twinvm-etcd";
/// Ports for clients and for other members, unless others are chosen: etcd's own.
pub const PORTS_DEFAULT: (u16, u16) = (2379, 2380);
/// How often the leader gives a sign of life, in ms: several round trips of a local network.
const HEARTBEAT_MS: u32 = 20;
/// Silence of the leader after which others ask to be it, in ms. etcd waits for once to twice as long, at random: a lost leader has a successor within 300 ms.
const ELECTION_MS: u32 = 120;
/// Largest database, in bytes.
const QUOTA_BYTES: u64 = 2 << 30;

/// One member: `NAME=IP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name of its machine.
    pub name: HostName,
    /// Where others reach it.
    pub ip: IpAddr,
}

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a member such as a=192.0.2.11");
        let (name, ip) = text.split_once('=').ok_or_else(wrong)?;
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        if ip.is_unspecified() {
            return Err(format!("`{text}`: name the address at which others reach it"));
        }
        Ok(Self { name: name.parse().map_err(|_| wrong())?, ip })
    }
}

/// What to set up.
pub struct EtcdSetup {
    /// The members: one, three or five.
    pub members: Vec<Member>,
    /// Port for clients.
    pub client_port: u16,
    /// Port for other members.
    pub peer_port: u16,
    /// The folder of a member's files on its machine.
    pub member_folder: PathBuf,
    /// The folder of a member's data on its machine.
    pub data_folder: PathBuf,
}

impl EtcdSetup {
    /// The address of the store.
    pub fn address(&self) -> String {
        let members = self.members.iter().map(|member| SocketAddr::new(member.ip, self.client_port).to_string());
        format!("etcd://{}", members.collect::<Vec<_>>().join(","))
    }

    /// Writes everything to a folder: what is for a member is in a folder with its name. What is there already of the same setup stays as it is.
    ///
    /// # Errors
    /// If the members make no sense, or the folder holds another setup or cannot be written to.
    pub fn write(&self, out: &Path) -> Result<()> {
        self.check()?;
        let address = self.address();
        match fs::read_to_string(out.join(ADDRESS)) {
            Ok(found) if found.trim() != address => {
                bail!("{} holds the setup of {}: choose another folder with --out", out.display(), found.trim())
            }
            Ok(_) => {}
            Err(_) => {
                private_folder(out)?;
                write_private(&out.join(ADDRESS), &format!("{address}\n"))?;
            }
        }
        let peers = out.join("peers");
        for authority in [out, &peers] {
            if !authority.join("ca.key").exists() {
                create_authority(authority)?;
            }
        }
        once(&out.join(ROOT_PASSWORD), random_text)?;
        once(&out.join("cluster-token"), random_text)?;
        let token = fs::read_to_string(out.join("cluster-token")).context("cannot read the cluster's token")?;
        self.members.iter().try_for_each(|member| self.write_member(out, &peers, member, &token))
    }

    fn check(&self) -> Result<()> {
        let names: BTreeSet<&HostName> = self.members.iter().map(|member| &member.name).collect();
        let addresses: BTreeSet<IpAddr> = self.members.iter().map(|member| member.ip).collect();
        if names.len() != self.members.len() || addresses.len() != self.members.len() {
            bail!("two members have one name or one address");
        }
        if ![1, 3, 5].contains(&self.members.len()) {
            bail!(
                "{} members: take three or five, of which most have to be left for the store to answer (or one, to try it out)",
                self.members.len()
            );
        }
        if self.client_port == self.peer_port {
            bail!("clients and members need ports of their own");
        }
        Ok(())
    }

    fn write_member(&self, out: &Path, peers: &Path, member: &Member, token: &str) -> Result<()> {
        let folder = out.join(member.name.to_string());
        private_folder(&folder)?;
        for (authority, name) in [(out, "member"), (peers, "peer")] {
            let file = |ending: &str| folder.join(format!("{name}{ending}"));
            if file(".pem").exists() {
                continue;
            }
            let keys = issue_member(authority, member.ip)?;
            for (ending, text) in [("-ca.pem", &keys.authority), (".key", &keys.key), (".pem", &keys.certificate)] {
                once(&file(ending), || Ok(text.clone()))?;
            }
        }
        once(&folder.join("etcd.yml"), || Ok(self.configuration(member, token.trim())))?;
        once(&folder.join("twinvm-etcd.service"), || Ok(self.unit()))
    }

    /// The configuration of a member (etcd v3.4). Texts are in quotes, as a name or a token may look like a number.
    fn configuration(&self, member: &Member, token: &str) -> String {
        let url = |ip: IpAddr, port: u16| format!("https://{}", SocketAddr::new(ip, port));
        let (client, peer) = (url(member.ip, self.client_port), url(member.ip, self.peer_port));
        let peers = self.members.iter().map(|member| format!("{}={}", member.name, url(member.ip, self.peer_port)));
        let (name, peers) = (&member.name, peers.collect::<Vec<_>>().join(","));
        let (files, data) = (self.member_folder.display(), self.data_folder.display());
        format!(
            "# Written by `twinvm cluster etcd`.\n\
             name: \"{name}\"\n\
             data-dir: \"{data}\"\n\
             listen-client-urls: \"{client}\"\n\
             advertise-client-urls: \"{client}\"\n\
             listen-peer-urls: \"{peer}\"\n\
             initial-advertise-peer-urls: \"{peer}\"\n\
             initial-cluster: \"{peers}\"\n\
             initial-cluster-token: \"{token}\"\n\
             initial-cluster-state: new\n\
             client-transport-security:\n  \
               cert-file: \"{files}/member.pem\"\n  \
               key-file: \"{files}/member.key\"\n  \
               client-cert-auth: true\n  \
               trusted-ca-file: \"{files}/member-ca.pem\"\n\
             peer-transport-security:\n  \
               cert-file: \"{files}/peer.pem\"\n  \
               key-file: \"{files}/peer.key\"\n  \
               client-cert-auth: true\n  \
               trusted-ca-file: \"{files}/peer-ca.pem\"\n\
             # What hosts talk to: a configuration in a file has it off unless it is said (etcd v3.4).\n\
             enable-grpc-gateway: true\n\
             # A lost leader has a successor within 300 ms on a local network.\n\
             heartbeat-interval: {HEARTBEAT_MS}\n\
             election-timeout: {ELECTION_MS}\n\
             pre-vote: true\n\
             auto-compaction-mode: periodic\n\
             auto-compaction-retention: 1h\n\
             quota-backend-bytes: {QUOTA_BYTES}\n\
             # Passwords are random: there is nothing to be won by trying some.\n\
             bcrypt-cost: 4\n\
             logger: zap\n"
        )
    }

    fn unit(&self) -> String {
        let (files, data) = (self.member_folder.display(), self.data_folder.display());
        format!(
            "# Written by `twinvm cluster etcd`. The user etcd is that of Debian's package etcd-server.\n\
             [Unit]\n\
             Description=etcd, the store of a twinvm cluster\n\
             Wants=network-online.target\n\
             After=network-online.target\n\
             Before=twinvm.service\n\
             Conflicts=etcd.service\n\
             # Its address may come later than it does after a boot.\n\
             StartLimitIntervalSec=0\n\n\
             [Service]\n\
             Type=notify\n\
             User=etcd\n\
             ExecStartPre=+/usr/bin/chown -R etcd: {files}\n\
             ExecStartPre=+/usr/bin/install -d -o etcd -g etcd -m 700 {data}\n\
             ExecStart=/usr/bin/etcd --config-file {files}/etcd.yml\n\
             Restart=on-failure\n\
             RestartSec=1\n\
             LimitNOFILE=65536\n\
             Nice=-10\n\
             IOSchedulingClass=best-effort\n\
             IOSchedulingPriority=0\n\n\
             [Install]\n\
             WantedBy=multi-user.target\n"
        )
    }
}

/// The address that a setup is of.
///
/// # Errors
/// If there is none in that folder.
pub fn address_of(setup: &Path) -> Result<String> {
    let file = setup.join(ADDRESS);
    let address = fs::read_to_string(&file)
        .with_context(|| format!("cannot read {} (`twinvm cluster etcd` writes that folder)", file.display()))?;
    Ok(address.trim().to_owned())
}

/// Writes a file, unless it is there.
fn once(path: &Path, text: impl FnOnce() -> Result<String>) -> Result<()> {
    if path.exists() { Ok(()) } else { write_private(path, &text()?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(members: &[&str]) -> EtcdSetup {
        EtcdSetup {
            members: members.iter().map(|member| member.parse().unwrap()).collect(),
            client_port: PORTS_DEFAULT.0,
            peer_port: PORTS_DEFAULT.1,
            member_folder: MEMBER_FOLDER_DEFAULT.into(),
            data_folder: DATA_FOLDER_DEFAULT.into(),
        }
    }

    fn files(folder: &Path) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(files(&path));
            } else {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
        found.sort();
        found
    }

    #[test]
    fn what_was_written_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("etcd");
        let three = setup(&["a=192.0.2.11", "b=192.0.2.12", "c=2001:db8::3"]);
        three.write(&out).unwrap();
        assert_eq!(address_of(&out).unwrap(), "etcd://192.0.2.11:2379,192.0.2.12:2379,[2001:db8::3]:2379");
        let before = files(&out);
        three.write(&out).unwrap();
        assert_eq!(files(&out), before);
        // What is missing is made again.
        fs::remove_dir_all(out.join("b")).unwrap();
        three.write(&out).unwrap();
        assert_eq!(files(&out).len(), before.len());
        let other = setup(&["a=192.0.2.21"]).write(&out).unwrap_err().to_string();
        assert!(other.contains("--out"), "{other}");
        // Members do not hold what makes further ones, or rights.
        let of_member: Vec<_> = files(&out.join("b")).into_iter().map(|(_, text)| text).collect();
        for secret in ["ca.key", "peers/ca.key", ROOT_PASSWORD] {
            assert!(!of_member.contains(&fs::read_to_string(out.join(secret)).unwrap()), "{secret}");
        }
    }

    #[test]
    fn members_that_make_no_sense_are_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("etcd");
        for members in [&["a=192.0.2.1", "b=192.0.2.2"][..], &["a=192.0.2.1", "a=192.0.2.2", "c=192.0.2.3"], &[]] {
            assert!(setup(members).write(&out).is_err());
            assert!(!out.exists());
        }
        for member in ["a", "a=", "=192.0.2.1", "A=192.0.2.1", "a=0.0.0.0", "a=x"] {
            assert!(member.parse::<Member>().is_err(), "{member}");
        }
    }
}
