//! Files of Unix sockets.

use crate::config::setting::settings;
use crate::config::value::address;

settings! {
    /// Who may connect to the files of Unix sockets that `listen` and `admin.listen` name.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct SocketFileConfig {
        /// Permissions of the files of Unix sockets.
        ///
        /// Permissions of the files of Unix sockets; to connect takes the right to write
        /// ([Unix sockets](guide/sockets.md)).
        mode: u32 = required(
            "listen.socket_mode", address::file_mode; "0660", "permissions in octal, such as 0660 or 0666", Restart
        );
        /// Owner of the files of Unix sockets.
        ///
        /// Owner of the files of Unix sockets, by name or number; only root may give them to another user.
        owner: Option<String> = optional(
            "listen.socket_owner", address::account; "", "a user, such as www-data or 33", Restart,
            unset = "the user that starts the fleet"
        );
        /// Group of the files of Unix sockets.
        ///
        /// Group of the files of Unix sockets, by name or number, such as the proxy's; one that the user who starts the
        /// fleet is a member of, unless that is root.
        group: Option<String> = optional(
            "listen.socket_group", address::account; "", "a group, such as www-data or 33", Restart,
            unset = "the group of the user that starts the fleet"
        );
    }
}
