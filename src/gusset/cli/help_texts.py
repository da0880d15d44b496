"""The help of each command, by its words after `gusset`. Made by `make help-texts`; do not edit it."""

from __future__ import annotations

HELP: dict[tuple[str, ...], str] = {
    (): """\
Usage: gusset [OPTIONS] COMMAND [ARGS]...

  Store secrets, and serve models that use them without leaking them.

    gusset secret set hf_access_token      (prompts for the value)
    gusset serve my-model                  (the model has it in kwargs["secrets"])

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.

Commands:
  init              Create a new model folder.
  check             Check a model folder before it is served.
  serve             Serve a model folder with its secrets.
  predict           Call a model, given its folder or its address.
  build             Build a container image of a model folder.
  deploy            Run a model folder on a cluster.
  env               List and remove the Python environments of models.
  scan              Search a container image for values of secrets.
  secret            Add, list, replace and delete secrets.
  exec              Run any command with chosen secrets.
  agent             Keep secrets as files in memory for any process.
  manager           Run the secret manager: pages and API.
  login             Use a manager for all further commands.
  logout            Use the embedded vault again.
  token             Create and revoke tokens of deployments.
  deployment        Show deployments and which versions their replicas hold.
  identity          Manage which platform tokens act as which deployment.
  issuer            Manage trusted token issuers.
  audit             Read, verify and export the audit log.
  key               Rotate the vault's keys.
  migrate-database  Move the vault to another database.
  doctor            Look for problems on this machine that weaken security.
  demo              Show how gusset works, in a temporary vault.
  schema            Print the JSON Schema of config.yaml.
  completion        Print the completion script for a shell.
""",
    ("init",): """\
Usage: gusset init [OPTIONS] DIR

  Create a model folder: a config.yaml that declares a secret, and a Model
  that uses it.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("check",): """\
Usage: gusset check [OPTIONS] DIR

  Check a model folder: its config.yaml, its code, its requirements, and
  whether its secrets exist.

  Nothing is installed: it says which environment `gusset serve` would make.

Options:
  --strict                  Treat warnings, such as unknown keys, as errors.
  --no-secrets              Do not check whether the declared secrets exist.
  --secrets-dir DIRECTORY   Look for the secrets in the files of this folder.
  --manager URL[,URL]       Look for the secrets at this manager, with the key
                            of `gusset login`.
  --env [auto|current|own]  Python environment of the model: this one if it
                            has all that is asked for, else its own.
                            [default: auto]
  --python [nearest|exact]  Allow the nearest Python if python_version is not
                            available, or only that version.  [default:
                            nearest]
  --output [text|json]      Output format; with json, standard output holds
                            one JSON document.
  -h, --help                Show this message and exit.
""",
    ("serve",): """\
Usage: gusset serve [OPTIONS] DIR

  Serve a model folder; its code gets the secrets that config.yaml declares.

  Runs until Ctrl-C or SIGTERM, and then finishes the requests in flight. A
  new value of a secret reaches the running model within a second.

Options:
  --host TEXT                 Address to listen on.  [default: 127.0.0.1]
  --port INTEGER RANGE        Port to listen on; 0 takes a free one.
                              [default: 8080; 0<=x<=65535]
  --secrets-dir DIRECTORY     Read secrets from the files of this folder.
  --manager URL[,URL]         Read secrets from this manager, with the key of
                              `gusset login`.
  --allow-missing NAME|all    Start even if this secret has no value
                              (repeatable).
  --callers NAME[,NAME]       Serve only callers who present the value of one
                              of these secrets as a key (repeatable).
  --tls-certificate FILE      Serve HTTPS with this certificate chain (PEM).
  --tls-key FILE              Private key of the certificate (PEM).
  --workers INTEGER RANGE     Number of processes, each with its own copy of
                              the model.  [default: 1; 1<=x<=1024]
  --reload                    Restart the model when a file of the folder
                              changes.
  --network [bridge|host]     Network of a custom image's container.
                              [default: bridge]
  --allowed-host NAME         Serve this Host too, besides this machine's own
                              names (repeatable).
  --allow-origin ORIGIN       Let web pages of this origin send requests and
                              read responses (repeatable).
  --env [auto|current|own]    Python environment of the model: this one if it
                              has all that is asked for, else its own.
                              [default: auto]
  --python [nearest|exact]    Allow the nearest Python if python_version is
                              not available, or only that version.  [default:
                              nearest]
  --gpus INTEGER              Number of GPUs for a custom image's container;
                              -1 for all.
  --mask-responses            Mask secrets in the model's results too, not
                              only in its errors and output.
  --debuggable                Allow debuggers and profilers to attach; they
                              can then read the values of secrets.
  --identity-token-file FILE  Exchange the JSON Web Token in this file at the
                              manager, instead of using a key or token.
  --output [text|json]        Output format; with json, standard output holds
                              one JSON document.
  -h, --help                  Show this message and exit.
""",
    ("predict",): """\
Usage: gusset predict [OPTIONS] DIR|URL

  Call a model and print its response.

  A folder is served for this one call. A URL leads to a model that is being
  served already; one that is served with --callers needs a key. A streamed
  response is printed as it arrives.

Options:
  -d, --data TEXT           Input as JSON, or @FILE to read it from a file.
                            Default: standard input.
  --secrets-dir DIRECTORY   Read secrets from the files of this folder.
  --caller NAME             Send the value of this secret as a caller's key.
  --caller-file FILE        Send the content of this file as a caller's key.
  --env [auto|current|own]  Python environment of the model: this one if it
                            has all that is asked for, else its own.
                            [default: auto]
  --python [nearest|exact]  Allow the nearest Python if python_version is not
                            available, or only that version.  [default:
                            nearest]
  --output [text|json]      Output format; with json, standard output holds
                            one JSON document.
  -h, --help                Show this message and exit.
""",
    ("build",): """\
Usage: gusset build [OPTIONS] DIR

  Build a container image of a model folder, with Docker or Podman.

  The image has the folder, its requirements and gusset, and no secrets: mount
  them at /secrets, or name a manager. Secrets of the build
  (build.secret_to_path_mapping) are in memory only. The image is searched for
  their values, and is removed if it contains one.

Options:
  --tag NAME               Name of the image; include its registry to push it.
  --push                   Push the image to its registry after it was
                           searched.
  --context-only FOLDER    Write the Containerfile and all that it copies into
                           this folder, and build nothing.
  --allow NAME             Accept this secret in the image (repeatable).
  --secrets-dir DIRECTORY  Read build secrets from the files of this folder.
  --manager URL[,URL]      Read build secrets from this manager, with the key
                           of `gusset login`.
  --output [text|json]     Output format; with json, standard output holds one
                           JSON document.
  -h, --help               Show this message and exit.
""",
    ("deploy",): """\
Usage: gusset deploy [OPTIONS] COMMAND [ARGS]...

  Run a model folder on a cluster.

Options:
  -h, --help  Show this message and exit.

Commands:
  kubernetes  Print the manifests that run a model folder on Kubernetes.
  ray         Deploy a model folder to a running cluster of Ray.
""",
    ("deploy", "kubernetes"): """\
Usage: gusset deploy kubernetes [OPTIONS] DIR

  Print the manifests that run a model folder on Kubernetes. They contain no
  secret values.

    gusset deploy kubernetes my-model --image registry.example/my-model@sha256:... \\
      --manager https://secrets.example.com | kubectl apply --server-side -f -

Options:
  --image REF                  The image to run, best with its digest.
                               [required]
  --namespace TEXT             The namespace of all objects.  [default:
                               default]
  --name TEXT                  The name of all objects, and of the deployment.
                               [default: the model's name]
  --replicas INTEGER RANGE     The number of pods. Omit it if an autoscaler
                               sets it.  [default: 1]  [0<=x<=100000]
  --gpus INTEGER RANGE         GPUs of each pod.  [default: as in config.yaml]
                               [0<=x<=64]
  --manager URL[,URL]          The manager, as pods reach it.  [default: as in
                               `gusset login`]
  --manager-ca FILE            Certificates (PEM) of the authority that signed
                               the manager's, if it is not a public one.
  --manager-cidr CIDR          Where the manager is, for --egress strict
                               (repeatable).
  --sidecar [native|ordinary]  How the agent runs with a custom image;
                               `ordinary` is for Kubernetes before 1.29.
                               [default: native]
  --agent-image REF            gusset's own image, for the agent of a custom
                               image.
  --user INTEGER RANGE         The user id of a custom image's server.
                               [default: docker_server.run_as_user_id, else
                               60000]  [1<=x<=2147483647]
  --egress [open|strict]       Where pods may connect to: all but the cloud's
                               metadata address, or DNS and the manager alone.
                               [default: open]
  --register                   Also let the pods' service account read the
                               secrets at the manager.
  --issuer URL                 The cluster's issuer of tokens, for --register.
  --team ID                    The deployment's team, for --register.
                               [default: your first team]
  --output [text|json]         Output format; with json, standard output holds
                               one JSON document.
  -h, --help                   Show this message and exit.
""",
    ("deploy", "ray"): """\
Usage: gusset deploy ray [OPTIONS] DIR

  Deploy a model folder to a running cluster of Ray.

  It becomes an application of Ray Serve. Each replica reads its secrets
  itself, using a file on its node. Returns when all replicas are running; the
  application keeps running after this command ends. Remove it with Ray: serve
  delete NAME.

Options:
  --address GCS_HOST:PORT     The cluster.  [default: RAY_ADDRESS, else the
                              cluster that runs on this machine]
  --name TEXT                 The name of the application and the deployment.
                              [default: the model's]
  --route-prefix TEXT         The path below which Ray's proxy serves it.
                              [default: /]
  --replicas INTEGER RANGE    The number of replicas.  [default: Ray's, which
                              is 1]  [1<=x<=10000]
  --manager URL[,URL]         The manager, as the nodes reach it.
  --token-file PATH           The file on each node with the deployment's
                              token.
  --identity-token-file PATH  The file on each node with a JSON Web Token,
                              which is exchanged at the manager.
  --secrets-dir PATH          The folder on each node with one file per
                              secret.
  --manager-ca PATH           The file on each node with the manager's CA
                              certificates (PEM).
  --insecure-http             Let nodes read secrets over HTTP without TLS.
  --allow-missing NAME|all    Start even if this secret has no value
                              (repeatable).
  --mask-responses            Mask secrets in the model's results too.
  --env [auto|current]        Have Ray install the requirements for each
                              replica, or use what the nodes have.  [default:
                              auto]
  --on-nodes                  Every node has the folder at this path: do not
                              send it.
  --timeout FLOAT RANGE       Seconds to wait until it is running.  [default:
                              600.0; x>=0]
  --output [text|json]        Output format; with json, standard output holds
                              one JSON document.
  -h, --help                  Show this message and exit.
""",
    ("env",): """\
Usage: gusset env [OPTIONS] COMMAND [ARGS]...

  List and remove the Python environments of model folders.

Options:
  -h, --help  Show this message and exit.

Commands:
  list    List the environments, the one that was used last first.
  path    Print the path of a model folder's environment, and nothing else.
  prune   Remove environments and downloaded weights that were not used...
  remove  Remove an environment, given its key or its model folder.
""",
    ("env", "list"): """\
Usage: gusset env list [OPTIONS]

  List the environments, the one that was used last first.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("env", "path"): """\
Usage: gusset env path [OPTIONS] DIR

  Print the path of a model folder's environment, and nothing else.

Options:
  --env [auto|current|own]  Python environment of the model: this one if it
                            has all that is asked for, else its own.
                            [default: auto]
  --python [nearest|exact]  Allow the nearest Python if python_version is not
                            available, or only that version.  [default:
                            nearest]
  --output [text|json]      Output format; with json, standard output holds
                            one JSON document.
  -h, --help                Show this message and exit.
""",
    ("env", "prune"): """\
Usage: gusset env prune [OPTIONS]

  Remove environments and downloaded weights that were not used for some time.

Options:
  --days INTEGER RANGE  Keep anything used in the last N days.  [default: 30;
                        0<=x<=36500]
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("env", "remove"): """\
Usage: gusset env remove [OPTIONS] KEY|DIR

  Remove an environment, given its key or its model folder.

Options:
  --env [auto|current|own]  Python environment of the model: this one if it
                            has all that is asked for, else its own.
                            [default: auto]
  --python [nearest|exact]  Allow the nearest Python if python_version is not
                            available, or only that version.  [default:
                            nearest]
  --output [text|json]      Output format; with json, standard output holds
                            one JSON document.
  -h, --help                Show this message and exit.
""",
    ("scan",): """\
Usage: gusset scan [OPTIONS] IMAGE|ARCHIVE|FOLDER|-

  Search an image for values of secrets, in all layers and all encodings that
  are masked.

  IMAGE is an image of Docker or Podman, ARCHIVE a file as `docker save` or
  `podman save` writes it, FOLDER an OCI folder, and - an archive on standard
  input.

  The values are all those in the vault, with older versions, or those of
  --secrets-dir. With a manager, they are those of the deployment whose token
  GUSSET_TOKEN_FILE names.

Options:
  --allow NAME             Accept this secret in the image (repeatable).
  --secrets-dir DIRECTORY  Search for the contents of the files in this
                           folder.
  --output [text|json]     Output format; with json, standard output holds one
                           JSON document.
  -h, --help               Show this message and exit.
""",
    ("secret",): """\
Usage: gusset secret [OPTIONS] COMMAND [ARGS]...

  Add, list, replace and delete secrets.

Options:
  -h, --help  Show this message and exit.

Commands:
  annotate  Change a secret's note, expiry date or interval of rotations,...
  delete    Delete a secret, also from running models; `gusset secret...
  destroy   Destroy the stored bytes of a secret's versions permanently;...
  export    Print secrets as lines of an .env file; without NAME, all.
  history   List a secret's versions.
  import    Store every NAME=VALUE of a .env file (- for standard input),...
  list      List secrets: names and dates, never values.
  restore   Restore a deleted secret, by its name (the last one deleted)...
  reveal    Show a stored value on the terminal.
  rollback  Make an older version's value current again, as a new version.
  rotate    Replace secrets with a provider's program, then revoke the...
  set       Add a secret, or replace its value.
""",
    ("secret", "annotate"): """\
Usage: gusset secret annotate [OPTIONS] NAME

  Change a secret's note, expiry date or interval of rotations, without a new
  value.

Options:
  --note TEXT                    A note for people; an empty text clears it.
  --expires DATE|never           Expiry date, such as 2031-01-31 or
                                 2031-01-31T12:00:00Z; or never.
  --rotate-every DURATION|never  How long a value is used until `gusset secret
                                 rotate --due` replaces it, as 30d; or never.
  --output [text|json]           Output format; with json, standard output
                                 holds one JSON document.
  -h, --help                     Show this message and exit.
""",
    ("secret", "delete"): """\
Usage: gusset secret delete [OPTIONS] NAME

  Delete a secret, also from running models; `gusset secret restore` restores
  it.

Options:
  --force               Delete it even while a running deployment uses it.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("secret", "destroy"): """\
Usage: gusset secret destroy [OPTIONS] NAME

  Destroy the stored bytes of a secret's versions permanently; its history
  stays.

Options:
  --version INTEGER RANGE  Destroy only this version (repeatable).
                           [1<=x<=2147483647]
  --yes                    Do not prompt for confirmation.
  --output [text|json]     Output format; with json, standard output holds one
                           JSON document.
  -h, --help               Show this message and exit.
""",
    ("secret", "export"): """\
Usage: gusset secret export [OPTIONS] [NAME...]

  Print secrets as lines of an .env file; without NAME, all. The audit log
  records each.

Options:
  --yes                 Do not prompt for confirmation.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("secret", "history"): """\
Usage: gusset secret history [OPTIONS] NAME

  List a secret's versions.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("secret", "import"): """\
Usage: gusset secret import [OPTIONS] FILE

  Store every NAME=VALUE of a .env file (- for standard input), all or none.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("secret", "list"): """\
Usage: gusset secret list [OPTIONS]

  List secrets: names and dates, never values.

Options:
  --deleted             Include deleted secrets, which can be restored.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("secret", "restore"): """\
Usage: gusset secret restore [OPTIONS] NAME

  Restore a deleted secret, by its name (the last one deleted) or its id.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("secret", "reveal"): """\
Usage: gusset secret reveal [OPTIONS] NAME

  Show a stored value on the terminal. The audit log records it.

Options:
  --version INTEGER RANGE  Show an older version.  [1<=x<=2147483647]
  --output [text|json]     Output format; with json, standard output holds one
                           JSON document.
  -h, --help               Show this message and exit.
""",
    ("secret", "rollback"): """\
Usage: gusset secret rollback [OPTIONS] NAME VERSION

  Make an older version's value current again, as a new version.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("secret", "rotate"): """\
Usage: gusset secret rotate [OPTIONS] [NAME...]

  Replace secrets with a provider's program, then revoke the old credentials
  there.

  A rotation that was interrupted, or waits for replicas, is continued by the
  same command.

Options:
  --with COMMAND                The provider's program: one string, split as
                                by a shell but run without one.
  --due                         Rotate only what is due: of these secrets, or
                                of all.
  --list                        List when secrets are due for rotation; change
                                nothing.
  --cancel                      End the unfinished rotation without revoking
                                anything.
  --current-handle HANDLE       The provider's name for the current
                                credential, if no rotation created it.
  --overlap DURATION            How long, at most, the previous value stays
                                readable, such as 30m (default: 1h).
  --timeout SECONDS             How long to wait for replicas (default: 60).
  --step-timeout DURATION       How long the program may run for one step
                                (default: 60s).
  --first-use-timeout DURATION  Revoke even if a replica has not used the new
                                value within this time (default: never).
  --accept-lost                 Revoke even if replicas were lost.
  --output [text|json]          Output format; with json, standard output
                                holds one JSON document.
  -h, --help                    Show this message and exit.
""",
    ("secret", "set"): """\
Usage: gusset secret set [OPTIONS] NAME

  Add a secret, or replace its value.

  On a terminal, gusset prompts for the value; otherwise standard input is the
  value, without one final newline.

Options:
  --exact                         Store standard input exactly: keep a final
                                  newline, allow an empty value.
  --from-file FILE                Store the exact bytes of this file.
  --note TEXT                     A note for people, such as where the value
                                  comes from. Not secret.
  --expires DATE                  Expiry date, such as 2031-01-31 or
                                  2031-01-31T12:00:00Z; gusset warns
                                  beforehand.
  --expect-version INTEGER RANGE  Set the value only if this is the current
                                  version (0: only if the secret does not
                                  exist).  [0<=x<=2147483647]
  --overlap DURATION              Keep the previous version readable for this
                                  long, as in 30s, 15m, 1h or 7d.
  --wait                          Exit only when no replica uses an older
                                  version; status 12 if some have not reported
                                  that.
  --timeout SECONDS               How long --wait waits, in seconds; 60 unless
                                  set.
  --output [text|json]            Output format; with json, standard output
                                  holds one JSON document.
  -h, --help                      Show this message and exit.
""",
    ("exec",): """\
Usage: gusset exec [OPTIONS] -- COMMAND...

  Run COMMAND with chosen secrets.

  GUSSET_SECRETS_DIR names a folder in memory with a file for each secret.
  Only you can read it, and it is removed when COMMAND ends. Values are masked
  in what COMMAND prints; at a terminal, COMMAND has one too. The exit status
  is that of COMMAND.

    gusset exec --secret db_password -- sh -c 'psql "password=$(cat $GUSSET_SECRETS_DIR/db_password) ..."'
    gusset exec --env HF_TOKEN=hf_access_token -- huggingface-cli whoami
    gusset exec --secret tls_key --watch HUP -- ./server

Options:
  --secret NAME               Provide this secret as a file (repeatable).
  --all                       Provide every secret that you may read, each as
                              a file.
  --env [VARIABLE=]NAME       Provide this secret as an environment variable
                              (repeatable). Your processes can read it there.
  --secrets-dir DIRECTORY     Read the secrets from this folder.
  --watch restart|SIGNAL      Follow changes: replace the files, then restart
                              COMMAND, or send it a signal such as HUP.
  --identity-token-file FILE  Exchange the JSON Web Token in this file at the
                              manager, instead of using a key or token.
  --output [text|json]        Output format; with json, standard output holds
                              one JSON document.
  -h, --help                  Show this message and exit.
""",
    ("agent",): """\
Usage: gusset agent [OPTIONS]

  Keep the secrets of a deployment as files in memory, for any process.

  FOLDER/NAME is the newest value of each secret. Values that changed together
  change together. Without --once the agent runs until SIGTERM or Ctrl-C, and
  then removes the files. While the manager is unreachable, the files stay as
  they are. CMD is a single string, split as by a shell but run without one.

    gusset agent --deployment my-app --dir /run/my-app/secrets
    gusset agent --deployment my-app --dir /secrets --once
    gusset agent --deployment my-app --dir /secrets --exec "nginx -g 'daemon off;'" --signal HUP

Options:
  --deployment NAME           The deployment whose secrets to provide.
                              [required]
  --dir FOLDER                The folder for the files, in memory (tmpfs or
                              ramfs).  [required]
  --secret NAME               Provide just this secret (repeatable). Default:
                              all that the deployment declares.
  --allow-missing NAME|all    Start even if this secret has no value
                              (repeatable).
  --once                      Write the files, leave them there, and exit.
  --exec CMD                  Run this command; it is restarted when a secret
                              changes.
  --signal NAME               Send --exec's command this signal instead of a
                              restart.
  --on-change CMD             Run this command once after each change.
  --keep-files                Leave the files in the folder at the end.
  --identity-token-file FILE  Exchange the JSON Web Token in this file at the
                              manager, instead of using a key or token.
  --output [text|json]        Output format; with json, standard output holds
                              one JSON document.
  -h, --help                  Show this message and exit.
""",
    ("manager",): """\
Usage: gusset manager [OPTIONS] [COMMAND] [ARGS]...

  Run the secret manager.

  Runs until Ctrl-C or SIGTERM. Set it up first with `gusset manager init`, or
  open the link that it prints while it is not set up.

Options:
  --output [text|json]        Output format; with json, standard output holds
                              one JSON document.
  --host TEXT                 Address to listen on.  [default: 127.0.0.1]
  --port INTEGER RANGE        Port to listen on; 0 takes a free one.
                              [default: 8700; 0<=x<=65535]
  --tls-certificate FILE      Serve HTTPS with this certificate chain (PEM).
  --tls-key FILE              Private key of the certificate (PEM).
  --trusted-proxy ADDRESS     Address of a proxy that terminates TLS and sets
                              X-Forwarded-For and X-Forwarded-Proto.
  --insecure-http             Allow plain HTTP on the network; others can then
                              read values.
  --key-rate INTEGER RANGE    Requests a second that one API key or token may
                              make; 0 for any number.  [default: 2000;
                              0<=x<=1000000]
  --root-key-command COMMAND  Get the root key from the output of this
                              command, which is run without a shell.
  --database URL              URL of the SQLite file or PostgreSQL database,
                              without a password.
  -h, --help                  Show this message and exit.

Commands:
  grants   Print the SQL that gives ROLE what a manager needs on PostgreSQL.
  init     Create the first administrator and print an API key.
  migrate  Bring the database to the schema of this gusset, and say which...
""",
    ("manager", "grants"): """\
Usage: gusset manager grants [OPTIONS] ROLE

  Print the SQL that gives ROLE what a manager needs on PostgreSQL.

  Execute it as the owner of the tables, after `gusset manager init` and after
  each upgrade. ROLE cannot change or remove audit records then.

Options:
  --schema TEXT         The schema of the vault's tables.  [default: public]
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("manager", "init"): """\
Usage: gusset manager init [OPTIONS]

  Create the first administrator and print an API key.

  At a terminal, gusset prompts for the password; otherwise standard input is
  the password, without one final newline.

Options:
  --email TEXT          E-mail address of the first administrator.  [required]
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("manager", "migrate"): """\
Usage: gusset manager migrate [OPTIONS]

  Bring the database to the schema of this gusset, and say which older
  managers can keep running.

  Managers do that by themselves when they start. Where their role does not
  own the tables, execute this as the role that does, then the output of
  `gusset manager grants`.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("login",): """\
Usage: gusset login [OPTIONS] URL

  Use the manager at URL for all further commands, with your API key.

  If several managers share a vault, give all their addresses, separated by
  commas.

  At a terminal, gusset prompts for the key; otherwise standard input is the
  key. It is kept in the settings file, which only your account can read.

Options:
  --insecure-http       Allow plain HTTP to another machine; anyone on the
                        network can read the values.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("logout",): """\
Usage: gusset logout [OPTIONS]

  Remove the manager and its key from the settings; commands use the embedded
  vault again.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("token",): """\
Usage: gusset token [OPTIONS] COMMAND [ARGS]...

  Create, list and revoke tokens. A token lets a deployment read its secrets
  and nothing else.

Options:
  -h, --help  Show this message and exit.

Commands:
  create  Create a token for a deployment that runs unattended.
  list    List a deployment's tokens by prefix.
  revoke  Revoke a token permanently.
""",
    ("token", "create"): """\
Usage: gusset token create [OPTIONS]

  Create a token for a deployment that runs unattended. It is printed once.

  Give it to `gusset serve` in a file that GUSSET_TOKEN_FILE names.

Options:
  --deployment NAME     The deployment that uses the token.  [required]
  --secrets A,B         The secrets that the token can read, separated by
                        commas.  [required]
  --expires DATE        Expiry date, such as 2031-01-31 or
                        2031-01-31T12:00:00Z.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("token", "list"): """\
Usage: gusset token list [OPTIONS]

  List a deployment's tokens by prefix.

Options:
  --deployment NAME     The deployment whose tokens to list.  [required]
  --team ID             The deployment's team, if several have one of that
                        name.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("token", "revoke"): """\
Usage: gusset token revoke [OPTIONS] PREFIX

  Revoke a token permanently.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("deployment",): """\
Usage: gusset deployment [OPTIONS] COMMAND [ARGS]...

  Show deployments and which versions their replicas hold.

Options:
  -h, --help  Show this message and exit.

Commands:
  list      List deployments.
  register  Register a deployment without a token, or change what it...
  remove    Remove a deployment and revoke its tokens; its replicas get...
  show      Show a deployment's replicas and the version of each secret...
""",
    ("deployment", "list"): """\
Usage: gusset deployment list [OPTIONS]

  List deployments.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("deployment", "register"): """\
Usage: gusset deployment register [OPTIONS] NAME

  Register a deployment without a token, or change what it declares. Its
  identities read just that.

Options:
  --secrets A,B         The secrets that it declares, separated by commas.
                        [required]
  --team ID             Its team.  [default: your first team]
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("deployment", "remove"): """\
Usage: gusset deployment remove [OPTIONS] NAME

  Remove a deployment and revoke its tokens; its replicas get no new values.

Options:
  --team ID             The deployment's team, if several have one of that
                        name.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("deployment", "show"): """\
Usage: gusset deployment show [OPTIONS] NAME

  Show a deployment's replicas and the version of each secret that they hold.

Options:
  --team ID             The deployment's team, if several have one of that
                        name.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("identity",): """\
Usage: gusset identity [OPTIONS] COMMAND [ARGS]...

  Manage which platform tokens act as which deployment.

Options:
  -h, --help  Show this message and exit.

Commands:
  add     Let tokens of an issuer stand for a deployment.
  list    List the identities of your teams.
  remove  Remove an identity.
""",
    ("identity", "add"): """\
Usage: gusset identity add [OPTIONS] NAME

  Let tokens of an issuer stand for a deployment. All that is given must match
  exactly.

  A missing issuer is added if you are an administrator.

    gusset identity add ranker-prod --deployment ranker --secrets db_password \\
      --issuer https://kubernetes.default.svc.cluster.local --jwks jwks.json \\
      --subject system:serviceaccount:prod:ranker

Options:
  --deployment NAME     The deployment that the token stands for.  [required]
  --issuer URL          The token's `iss`.  [required]
  --subject TEXT        The token's `sub`.  [required]
  --audience TEXT       The token's `aud`.  [default: gusset]
  --claim POINTER=TEXT  Another claim, by JSON Pointer, as
                        /kubernetes.io/namespace=prod (repeatable).
  --jwks URL|FILE       The issuer's keys, as a URL or a file, whose content
                        is sent. Default: the issuer says where.
  --secrets A,B         Register the deployment with these secrets, separated
                        by commas, without a token.
  --team ID             The deployment's team.  [default: your first team]
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("identity", "list"): """\
Usage: gusset identity list [OPTIONS]

  List the identities of your teams.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("identity", "remove"): """\
Usage: gusset identity remove [OPTIONS] NAME

  Remove an identity. Tokens issued for it stop working at once.

Options:
  --team ID             The identity's team, if several have one of that name.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("issuer",): """\
Usage: gusset issuer [OPTIONS] COMMAND [ARGS]...

  Manage trusted issuers of JSON Web Tokens (administrators).

Options:
  -h, --help  Show this message and exit.

Commands:
  add     Trust the issuer at URL, which is exactly the `iss` of its tokens.
  list    List the issuers, and what the manager knows of their keys.
  remove  Stop trusting an issuer.
""",
    ("issuer", "add"): """\
Usage: gusset issuer add [OPTIONS] URL

  Trust the issuer at URL, which is exactly the `iss` of its tokens.

Options:
  --jwks URL|FILE       The issuer's keys, as a URL or a file, whose content
                        is sent. Default: the issuer says where.
  --allow-private       Let its keys be fetched from a private address.
  --replace             Change how the keys of a trusted issuer are found.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("issuer", "list"): """\
Usage: gusset issuer list [OPTIONS]

  List the issuers, and what the manager knows of their keys.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("issuer", "remove"): """\
Usage: gusset issuer remove [OPTIONS] URL

  Stop trusting an issuer. Remove its identities first.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("audit",): """\
Usage: gusset audit [OPTIONS] COMMAND [ARGS]...

  Read, verify and export the audit log.

Options:
  -h, --help  Show this message and exit.

Commands:
  accept-loss  Accept that the database has lost records, so that...
  export       Print every record as JSON Lines, oldest first.
  public-key   Print the public keys that verify checkpoints: they are...
  show         Show the newest records; the newest comes last.
  verify       Verify that no record was edited, removed, reordered or...
""",
    ("audit", "accept-loss"): """\
Usage: gusset audit accept-loss [OPTIONS]

  Accept that the database has lost records, so that managers write again.

  Do it only when you know why: the database was restored from a backup, or a
  standby took over without the newest commits. What the lost records did is
  undone: keys that were revoked may be valid again, and values are older
  ones.

Options:
  --yes                 Do not prompt for confirmation.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("audit", "export"): """\
Usage: gusset audit export [OPTIONS]

  Print every record as JSON Lines, oldest first.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("audit", "public-key"): """\
Usage: gusset audit public-key [OPTIONS]

  Print the public keys that verify checkpoints: they are for auditors, and
  open nothing.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("audit", "show"): """\
Usage: gusset audit show [OPTIONS]

  Show the newest records; the newest comes last.

Options:
  --secret TEXT          Only records about this secret.
  --action TEXT          Only records of this action, such as secret.write.
  --actor TEXT           Only records of this person or deployment.
  --limit INTEGER RANGE  Number of records, newest first.  [default: 50;
                         1<=x<=1000000]
  --output [text|json]   Output format; with json, standard output holds one
                         JSON document.
  -h, --help             Show this message and exit.
""",
    ("audit", "verify"): """\
Usage: gusset audit verify [OPTIONS]

  Verify that no record was edited, removed, reordered or cut off.

Options:
  --checkpoint FILE     Checkpoints kept elsewhere: a copy of the witness
                        file. May be repeated.
  --public-key FILE     Verify --checkpoint and --log with the keys that
                        `audit public-key` printed, without the vault.
  --log FILE            With --public-key: what `audit export` printed.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("key",): """\
Usage: gusset key [OPTIONS] COMMAND [ARGS]...

  Rotate and list the vault's keys.

Options:
  -h, --help  Show this message and exit.

Commands:
  passphrase  Protect the root key's file with a passphrase, or with a...
  rotate      Replace keys of the vault, while others use it.
  status      List the keys by kind and number, never the keys themselves.
""",
    ("key", "passphrase"): """\
Usage: gusset key passphrase [OPTIONS]

  Protect the root key's file with a passphrase, or with a new one.

Options:
  --remove              Protect the file by its mode only.
  --file FILE           Read the new passphrase from this file, which others
                        may not read.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("key", "rotate"): """\
Usage: gusset key rotate [OPTIONS]

  Replace keys of the vault, while others use it.

Options:
  --kek                 The key-encryption key: all data keys are rewrapped.
                        The default.
  --audit               The key that authenticates audit records.
  --state               The key that authenticates rows of the database.
  --signing             The key that signs checkpoints of the audit log.
  --idempotency         The key that recognises repeated requests.
  --root                The root key; keep a copy of its file apart from
                        backups.
  --all                 All of these, the root key last.
  --finish              With --root: drop the old root key, after the new one
                        was copied to each machine.
  --cancel              With --root: drop the new root key, such as one that
                        was lost, instead.
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("key", "status"): """\
Usage: gusset key status [OPTIONS]

  List the keys by kind and number, never the keys themselves.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("migrate-database",): """\
Usage: gusset migrate-database [OPTIONS]

  Copy the vault to an empty database, SQLite or PostgreSQL, and verify both.

  Stop all managers first. The vault that it copies from stays as it is. After
  a failure, run it again: the target has the whole vault or none.

Options:
  --from URL            The database that has the vault.  [required]
  --to URL              An empty database.  [required]
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("doctor",): """\
Usage: gusset doctor [OPTIONS]

  Look for problems on this machine that weaken security, and print how to fix
  them.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("demo",): """\
Usage: gusset demo [OPTIONS]

  Store a secret, serve a model that uses it, and call it, all in a temporary
  folder.

Options:
  --once                Exit after the call, with status 0 if the prediction
                        was correct.
  --port INTEGER RANGE  Port to serve on. Default: any free port.
                        [0<=x<=65535]
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("schema",): """\
Usage: gusset schema [OPTIONS]

  Print the JSON Schema of config.yaml, for editors.

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
    ("completion",): """\
Usage: gusset completion [OPTIONS] {bash|zsh|fish}

  Print the completion script for a shell.

    bash: eval "$(gusset completion bash)"      in ~/.bashrc
    zsh:  eval "$(gusset completion zsh)"       in ~/.zshrc
    fish: gusset completion fish | source       in ~/.config/fish/config.fish

Options:
  --output [text|json]  Output format; with json, standard output holds one
                        JSON document.
  -h, --help            Show this message and exit.
""",
}
