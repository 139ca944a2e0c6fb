# The shell: reads executions from the control socket, sources each into this shell, reports its exit code.
#
# A program that exits, exits this shell, and its code is the shell's. While a program runs, the control socket is closed for it: bash
# keeps it at a descriptor of its own choice that no child inherits. A program whose first line names another interpreter is run as a
# file. An EXIT trap runs at the end of the execution that set it, as it would at the end of a script; the options -e, -u and -x and
# the traps DEBUG, ERR and RETURN end with their execution, because this file would run under them.

BASH_ARGV0=bash
__exec_sandbox_shell='^#![[:space:]]*((/usr)?/bin/(env[[:space:]]+)?(ba)?sh)[[:space:]]*$'

__exec_sandbox_status() { builtin return "$__exec_sandbox_code"; }

builtin printf 'ready\n' >&1000
while IFS=' ' builtin read -r -u 1000 _ __exec_sandbox_token __exec_sandbox_dir; do
    # The variables of this execution, and what they hid.
    declare -A __exec_sandbox_hidden=()
    __exec_sandbox_added=()
    builtin mapfile -d '' -t __exec_sandbox_env <"$__exec_sandbox_dir/env"
    for __exec_sandbox_pair in "${__exec_sandbox_env[@]}"; do
        __exec_sandbox_name=${__exec_sandbox_pair%%=*}
        # A name that no shell variable can have is not passed on, and a read-only variable keeps its value.
        [[ $__exec_sandbox_name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || builtin continue
        if [[ -v $__exec_sandbox_name ]]; then
            __exec_sandbox_hidden[$__exec_sandbox_name]=${!__exec_sandbox_name}
        else
            __exec_sandbox_added+=("$__exec_sandbox_name")
        fi
        builtin export "$__exec_sandbox_pair" 2>/dev/null
    done

    __exec_sandbox_first=
    IFS= builtin read -r __exec_sandbox_first <"$__exec_sandbox_dir/code"
    # A stray `break` or `continue` of the program ends this loop of one round, and not the one around it.
    for __exec_sandbox_once in 1; do
        if [[ $__exec_sandbox_first =~ ^'#!' && ! $__exec_sandbox_first =~ $__exec_sandbox_shell ]]; then
            "$__exec_sandbox_dir/code" 1000>&-
        else
            builtin source "$__exec_sandbox_dir/code" 1000>&-
        fi
    done
    {
        __exec_sandbox_code=$?
        builtin set +eux
        builtin trap - DEBUG ERR RETURN
    } >/dev/null 2>&1
    __exec_sandbox_trap=$(builtin trap -p EXIT)
    if [[ -n $__exec_sandbox_trap ]]; then
        builtin trap - EXIT
        # `trap -- 'command' EXIT`, quoted by bash itself.
        builtin eval "__exec_sandbox_trap=(${__exec_sandbox_trap})"
        __exec_sandbox_status
        builtin eval "${__exec_sandbox_trap[2]}" 1000>&-
        __exec_sandbox_trap=
    fi

    for __exec_sandbox_name in "${__exec_sandbox_added[@]}"; do
        builtin unset -v "$__exec_sandbox_name" 2>/dev/null
    done
    for __exec_sandbox_name in "${!__exec_sandbox_hidden[@]}"; do
        builtin export "$__exec_sandbox_name=${__exec_sandbox_hidden[$__exec_sandbox_name]}" 2>/dev/null
    done
    builtin printf 'done %s %d\n' "$__exec_sandbox_token" "$__exec_sandbox_code" >&1000
done
