//! Hosts that join and leave the cluster: the daemon's side.

use std::collections::BTreeSet;
use std::time::Duration;
use terminal::error_text::error_text;

use api::client::{CallError, Target};
use api::joining::{JoinCluster, Joined, MadeToken, MakeToken};
use api::leaving::HostLeft;
use axum::http::Method;
use cluster::records::{ClusterError, TokenUse};
use cluster::store::{EtcdAddress, StoreLocation};
use replication::channel::{Fingerprint, IdentityError, Peer, sign_request};
use spec::HostName;

use super::daemon::Daemon;
use super::error::HostError;
use super::etcd_access::EtcdAdministrator;
use super::token::{Token, secret_digest};

/// For how long a token can be valid, in seconds.
const VALID_S: std::ops::RangeInclusive<u64> = 1..=7 * 24 * 3600;

/// How long the host with the authority may take to remove a user from etcd.
const RIGHTS_TIMEOUT: Duration = Duration::from_secs(10);

impl Daemon {
    /// The host that signs certificates, if that is another one: the one that has made the cluster.
    pub fn authority_elsewhere(&self) -> Result<Option<Target>, HostError> {
        if self.folder.authority().is_dir() {
            return Ok(None);
        }
        let cluster = self.registry().cluster();
        let Some(maker) = cluster.made_by()?.filter(|maker| maker != self.registry().host_name()) else {
            return Err(self.no_authority());
        };
        let address = cluster.host(&maker)?.api_address;
        Ok(Some(Target { host: maker.to_string(), address }))
    }

    fn no_authority(&self) -> HostError {
        HostError::refused(format!(
            "host {} does not hold the cluster's authority, which signs certificates",
            self.host()
        ))
        .hint("ask the host with the folder `authority`, or bring that folder back from where it is kept")
    }

    /// Makes a token with which one host can join.
    pub fn make_token(&self, make: &MakeToken) -> Result<MadeToken, HostError> {
        if !self.folder.authority().is_dir() {
            return Err(self.no_authority());
        }
        if !VALID_S.contains(&make.valid_s) {
            let (least, most) = (VALID_S.start(), VALID_S.end());
            return Err(HostError::invalid(format!(
                "a token can be valid for {least} s to {most} s, not {} s",
                make.valid_s
            )));
        }
        let host = make.host.as_ref().map(|name| self.free_name(name)).transpose()?;
        let target = Target { host: self.host().to_owned(), address: self.api_address() };
        let authority = Fingerprint::of_authority(&self.folder.authority()).map_err(anyhow::Error::from)?;
        let token = Token::new(target, authority)?;
        self.registry().cluster().add_token(&secret_digest(&token.secret), host, Duration::from_secs(make.valid_s))?;
        Ok(MadeToken { token: token.to_string(), host: make.host.clone(), valid_s: make.valid_s })
    }

    /// The name of a host that is not there yet.
    fn free_name(&self, name: &str) -> Result<HostName, HostError> {
        let name: HostName = name.parse().map_err(ClusterError::from)?;
        let is_taken = match self.registry().cluster().host(&name) {
            Ok(_) => true,
            Err(ClusterError::NoHost(_)) => name == *self.registry().host_name(),
            Err(error) => return Err(error.into()),
        };
        if is_taken {
            return Err(HostError::refused(format!("there is a host {name} already")).hint(format!(
                "choose another name, or remove that host first with `twinvm host leave` there or, if it is gone, with `twinvm host rm {name}`"
            )));
        }
        Ok(name)
    }

    /// Admits a host that has a token: certifies its key. The token is used up by this, but for the same key.
    pub fn admit_host(&self, join: &JoinCluster) -> Result<Joined, HostError> {
        let digest = secret_digest(&join.secret);
        let token = self.registry().cluster().token(&digest).map_err(refuse_token)?;
        if !self.folder.authority().is_dir() {
            return Err(self.no_authority());
        }
        if let Some(host) = token.host.as_ref().filter(|host| ***host != *join.host) {
            return Err(HostError::not_entitled(format!("the token is for host {host}, not for {}", join.host)).hint(
                format!("join with `--name {host}`, or make another one with `twinvm host token {}`", join.host),
            ));
        }
        let host: HostName = join.host.parse().map_err(ClusterError::from)?;
        let certified = sign_request(&self.folder.authority(), &join.request, &host).map_err(|error| match error {
            IdentityError::Request(_) | IdentityError::Name(_) => HostError::invalid(error.to_string()),
            error => anyhow::Error::from(error).into(),
        })?;
        let by = TokenUse { host: host.clone(), key_digest: certified.key_digest };
        if token.used_by.is_some_and(|used_by| used_by != by) {
            return Err(refuse_token(ClusterError::TokenUsed));
        }
        self.free_name(&host)?;
        self.registry().cluster().use_token(&digest, &by).map_err(refuse_token)?;
        let etcd = match self.etcd_administrator()? {
            Some((administrator, address)) => Some(administrator.admit(&address, &host, &join.request)?),
            None => None,
        };
        tracing::info!("host {host} has got its certificate with a token");
        Ok(Joined {
            etcd,
            authority: certified.authority,
            certificate: certified.certificate,
            store: self.config.store.to_string(),
        })
    }

    /// Who gives rights in etcd, if that is here.
    fn etcd_administrator(&self) -> Result<Option<(EtcdAdministrator, EtcdAddress)>, HostError> {
        let StoreLocation::Etcd(address) = &self.config.store else { return Ok(None) };
        let administrator = EtcdAdministrator::of(&self.folder, address)?;
        Ok(administrator.map(|administrator| (administrator, address.clone())))
    }

    /// Whether only the host with the cluster's authority may change what concerns other hosts.
    pub fn has_own_rights_only(&self) -> bool {
        self.config.store_keys.as_ref().is_some_and(|keys| keys.user.is_some())
    }

    /// Removes another host that is not alive and holds no replica, and its rights in etcd.
    pub fn remove_host(&self, name: &str) -> Result<(), HostError> {
        self.registry().remove_host(name)?;
        if let Some((administrator, _)) = self.etcd_administrator()? {
            administrator.dismiss(&name.parse().map_err(ClusterError::from)?)?;
        }
        Ok(())
    }

    /// Takes the rights in etcd away from `host`, which has left the cluster and asks for it itself.
    pub fn end_rights(&self, host: &str, client: &Peer) -> Result<(), HostError> {
        if client.host() != Some(host) {
            return Err(HostError::not_entitled(format!("{client} may not give up what host {host} has")));
        }
        let name: HostName = host.parse().map_err(ClusterError::from)?;
        match self.registry().cluster().host(&name) {
            Err(ClusterError::NoHost(_)) => {}
            Ok(_) => return Err(HostError::refused(format!("host {host} has not left the cluster"))),
            Err(error) => return Err(error.into()),
        }
        if let Some((administrator, _)) = self.etcd_administrator()? {
            administrator.dismiss(&name)?;
        }
        Ok(())
    }

    /// Gives this host's own rights in etcd up, which `authority` has given; here, if that is nobody.
    fn give_up_rights(&self, authority: Option<&Target>) -> Result<(), String> {
        match authority {
            Some(target) => {
                let path = format!("/v1/hosts/{}/rights", self.host());
                self.wait_for(self.client().call(target, Method::DELETE, &path, None::<&()>, RIGHTS_TIMEOUT))
                    .map_err(|error: CallError| error.to_string())
            }
            None => match self.etcd_administrator() {
                Ok(Some((administrator, _))) => {
                    administrator.dismiss(self.registry().host_name()).map_err(|error| error_text(&error))
                }
                Ok(None) => Err("the folder with the keys of etcd's administrator is not here".to_owned()),
                Err(error) => Err(error.to_string()),
            },
        }
    }

    /// Takes this host out of the cluster, for good, and ends the daemon. Refused while a replica or the disks of a VM are here.
    pub fn leave(&self) -> Result<HostLeft, HostError> {
        // Nobody is given a place here meanwhile.
        let admission = self.admission();
        let state = self.registry().state()?;
        let here = self.registry().host_name();
        let (mut roles, mut named) = (Vec::new(), BTreeSet::new());
        for vm in &state.vms {
            let (claim, name) = (&vm.claim.claim, &vm.record.name);
            let role = match &claim.secondary {
                _ if here.is(&claim.primary) => "primary",
                Some(secondary) if here.is(secondary) => "secondary",
                _ => continue,
            };
            roles.push(format!("the {role} of {name}"));
            named.insert(name.to_string());
        }
        let strays = self.all_replicas().into_iter().filter(|replica| !named.contains(&replica.vm));
        roles.extend(strays.map(|replica| format!("a replica of {}", replica.vm)));
        if !roles.is_empty() {
            return Err(HostError::refused(format!("host {here} has {}", roles.join(", "))).hint(
                "move a primary with `twinvm ft switchover VM`, after `twinvm ft on VM` if it has no secondary; end a secondary with `twinvm ft off VM`",
            ));
        }
        if self.folder.authority().is_dir() && state.hosts.len() > 1 {
            return Err(HostError::refused(format!(
                "host {here} holds the cluster's authority, without which no host can be added"
            ))
            .hint("move the folder `authority` to the folder of another host first"));
        }
        let has_rights = self.has_own_rights_only();
        // Afterwards this host reads nothing any more.
        let authority = if has_rights { self.authority_elsewhere() } else { Ok(None) };
        self.begin_to_stop(false);
        if let Err(error) = self.registry().leave() {
            self.go_on();
            return Err(error.into());
        }
        drop(admission);
        let given_up = match authority {
            _ if !has_rights => Ok(()),
            Ok(authority) => self.give_up_rights(authority.as_ref()),
            Err(error) => Err(error.to_string()),
        };
        let remains = given_up.err().map(|why| {
            let user = self.config.store_keys.as_ref().and_then(|keys| keys.user.as_ref());
            let user = user.map_or("", |user| user.name.as_str());
            format!("its user in etcd, {user}, could not be removed ({why}): `etcdctl user delete {user}` does it, and so does a host of that name that joins")
        });
        self.folder.retire()?;
        tracing::info!("host {here} has left the cluster");
        if let Some(remains) = &remains {
            tracing::warn!("{remains}");
        }
        self.request_stop();
        Ok(HostLeft { remains })
    }
}

/// What is said of a token to somebody who need not be entitled to anything.
fn refuse_token(error: ClusterError) -> HostError {
    match error {
        ClusterError::NoToken | ClusterError::TokenUsed => HostError::not_entitled(error.to_string())
            .hint("make another one with `twinvm host token` on a host of the cluster"),
        error => error.into(),
    }
}
