# The shell: reads executions from the control socket, sources each into this shell, reports its exit code.
#
# A program that exits, exits this shell, and its code is the shell's. While a program runs, the control socket (1000), copies of the
# standard streams (1001, 1002) and a pipe for notes (1003) are closed for it: bash keeps them at descriptors of its own choice that no
# child inherits, and afterwards makes the streams whole again, whatever the program did to them. A program whose first line names
# another interpreter is run as a file.
#
# A rehearsal is sourced into a copy of this shell, which ends with it. A seed is taken for RANDOM, the only thing that is drawn here.
#
# An EXIT trap runs at the end of the execution that set it, as it would at the end of a script; the options -e, -u and -x and the
# traps DEBUG, ERR and RETURN end with their execution, because this file would run under them. So do functions called `builtin`
# and `unset`. When something here fails all the same, the shell ends with the program's code.

BASH_ARGV0=bash
__exec_sandbox_shell='^#![[:space:]]*((/usr)?/bin/(env[[:space:]]+)?(ba)?sh)[[:space:]]*$'

__exec_sandbox_status() { \builtin return "$__exec_sandbox_code"; }

exec 1001>&1 1002>&2 1003<> <(:)
# That child's end is not for a program's trap to hear of.
builtin wait $!
# Exercised before the first program comes: a file is sourced.
builtin source /dev/null 1>&1001
builtin echo ready >&1000
__exec_sandbox_code=0
__exec_sandbox_ran=
# `until`, because after `set -n` every command seems to succeed and none is executed.
# `mapfile` instead of `read`, because a program may have made IFS read-only. What it fills is an array, whose first element is `$name`.
until ! \builtin mapfile -n 1 -t -u 1000 __exec_sandbox_verb; do
    \builtin mapfile -n 1 -t -u 1000 __exec_sandbox_token
    \builtin mapfile -n 1 -t -u 1000 __exec_sandbox_dir
    case $__exec_sandbox_verb in
        '')
            # The agent is gone.
            \builtin break
            ;;
        seed)
            # It keeps the number's last 32 bits. One that a program has unset is no special one any more.
            case $__exec_sandbox_ran in
                '') RANDOM=16#$__exec_sandbox_dir ;;
                *) [[ ! -v RANDOM ]] || RANDOM=16#$__exec_sandbox_dir ;;
            esac
            \builtin echo $'\n'"seeded $__exec_sandbox_token" >&1000 || \builtin exit 70
            \builtin continue
            ;;
    esac
    \builtin mapfile -d '' -t __exec_sandbox_env <"$__exec_sandbox_dir/env"
    case $__exec_sandbox_env in
        '') ;;
        *)
            # The variables of this execution, and what they hid: what children were given, and what only this shell knew.
            __exec_sandbox_hidden=()
            __exec_sandbox_private=()
            __exec_sandbox_added=()
            for __exec_sandbox_pair in "${__exec_sandbox_env[@]}"; do
                __exec_sandbox_name=${__exec_sandbox_pair%%=*}
                # A name that no shell variable can have is not passed on, and a read-only variable keeps its value.
                [[ $__exec_sandbox_name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || \builtin continue
                if [[ ! -v $__exec_sandbox_name ]]; then
                    __exec_sandbox_added+=("$__exec_sandbox_name")
                elif [[ ${!__exec_sandbox_name@a} == *x* ]]; then
                    __exec_sandbox_hidden+=("$__exec_sandbox_name=${!__exec_sandbox_name}")
                else
                    __exec_sandbox_private+=("$__exec_sandbox_name=${!__exec_sandbox_name}")
                fi
                \builtin export "$__exec_sandbox_pair" 2>/dev/null
            done
            ;;
    esac

    __exec_sandbox_way=$__exec_sandbox_verb
    \builtin mapfile -n 1 -t __exec_sandbox_first <"$__exec_sandbox_dir/code"
    case $__exec_sandbox_first in
        # No regular expression before there has to be one: the first that a shell compiles takes it long.
        '#!'*) [[ $__exec_sandbox_first =~ $__exec_sandbox_shell ]] || __exec_sandbox_way=file ;;
    esac
    # A stray `break` or `continue` of the program ends this loop of one round, and not the one around it.
    for __exec_sandbox_once in 1; do
        case $__exec_sandbox_way in
            file)
                "$__exec_sandbox_dir/code" 0</dev/null 1>&1001 2>&1002 1000>&- 1001>&- 1002>&- 1003>&-
                ;;
            rehearse)
                (\builtin source "$__exec_sandbox_dir/code") 0</dev/null 1>&1001 2>&1002 1000>&- 1001>&- 1002>&- 1003>&-
                ;;
            *)
                __exec_sandbox_ran=yes
                \builtin source "$__exec_sandbox_dir/code" 0</dev/null 1>&1001 2>&1002 1000>&- 1001>&- 1002>&- 1003>&-
                ;;
        esac
    done
    # By itself, for it counts even when the pipe is gone.
    { __exec_sandbox_code=$?; } 2>/dev/null
    {
        __exec_sandbox_options=$BASHOPTS
        # With this, no function stands before `unset`, `set` and `trap`.
        POSIXLY_CORRECT=
        \unset -f builtin unset
        \set +eux
        \trap - DEBUG ERR RETURN
        # A pipe instead of $(…): a fork here would run the program's trap for SIGCHLD.
        \trap -p EXIT
        \builtin echo
    } >&1003 2>/dev/null
    \builtin mapfile -n 1 -t -u 1003 __exec_sandbox_trap || \builtin exit "$__exec_sandbox_code"
    case $__exec_sandbox_trap in
        # Where there is none, POSIX has this for it; then the empty line is the next one.
        'trap -- - EXIT') \builtin mapfile -n 1 -t -u 1003 __exec_sandbox_trap ;;
    esac
    case $__exec_sandbox_verb:$__exec_sandbox_trap in
        last:) ;;
        *)
            # Something of the program still follows, so its options are what it has left.
            \unset POSIXLY_CORRECT
            for __exec_sandbox_name in expand_aliases inherit_errexit interactive_comments shift_verbose sourcepath; do
                if [[ :$__exec_sandbox_options: == *:$__exec_sandbox_name:* ]]; then
                    \builtin shopt -s "$__exec_sandbox_name"
                else
                    \builtin shopt -u "$__exec_sandbox_name"
                fi
            done
            ;;
    esac 2>/dev/null
    case $__exec_sandbox_trap in
        '') ;;
        *)
            \builtin trap - EXIT
            # `trap -- 'command' EXIT`, quoted by bash itself. A command may have more lines than the first.
            \builtin printf '\0' >&1003
            \builtin mapfile -n 1 -d '' -t -u 1003 __exec_sandbox_rest
            \builtin eval "__exec_sandbox_trap=(${__exec_sandbox_trap}"$'\n'"${__exec_sandbox_rest})"
            __exec_sandbox_status
            \builtin eval "${__exec_sandbox_trap[2]}" 0</dev/null 1>&1001 2>&1002 1000>&- 1001>&- 1002>&- 1003>&-
            ;;
    esac

    case $__exec_sandbox_env in
        '') ;;
        *)
            for __exec_sandbox_name in "${__exec_sandbox_added[@]}"; do
                \builtin unset -v "$__exec_sandbox_name" 2>/dev/null
            done
            for __exec_sandbox_pair in "${__exec_sandbox_hidden[@]}"; do
                \builtin export "$__exec_sandbox_pair" 2>/dev/null
            done
            for __exec_sandbox_pair in "${__exec_sandbox_private[@]}"; do
                \builtin export -n "$__exec_sandbox_pair" 2>/dev/null
            done
            ;;
    esac
    \builtin echo $'\n'"done $__exec_sandbox_token $__exec_sandbox_code" >&1000 || \builtin exit "$__exec_sandbox_code"
done
\exit "$__exec_sandbox_code"
