# The probes of `checks.txt` for bash. The library puts the checks after this text: `check ATTEMPT… -- CONTROL…`. A line of output is what
# came of one pair. What bash does itself is done without another process, for time.
said=/tmp/.posture-said

# The error's name out of what was said of it.
name() {
    local text
    IFS= read -r -d '' text <"$said"
    case $text in
        *'Permission denied'*) answer=EACCES ;;
        *'No such file or directory'* | *'Not a directory'*) answer=ENOENT ;;
        *'Read-only file system'*) answer=EROFS ;;
        *'Operation not permitted'*) answer=EPERM ;;
        *'No such process'*) answer=ESRCH ;;
        *) answer=error ;;
    esac
}

probe() {
    answer=ok
    case $1 in
        exists) [[ -e $2 || -L $2 ]] || answer=ENOENT ;;
        read) { : <"$2"; } 2>"$said" || name ;;
        write) { : >>"$2"; } 2>"$said" || name ;;
        create) if { : >"$2/.posture"; } 2>"$said"; then rm -f "$2/.posture"; else name; fi ;;
        list) ls "$2" >/dev/null 2>"$said" || name ;;
        run)
            printf '#!/bin/true\n' >"$2/.posture-program" && chmod 700 "$2/.posture-program"
            "$2/.posture-program" 2>"$said" || name
            rm -f "$2/.posture-program"
            ;;
        kill) kill -"$3" "${2/self/$$}" 2>"$said" || name ;;
        word)
            local all
            read -r -d '' -a all <"$2"
            [[ " ${all[*]} " == *" $3 "* ]] || answer=no
            ;;
        mounted)
            answer=no
            local words
            while read -r -a words; do
                if [[ ${words[4]} == "$2" ]]; then
                    answer=no
                    [[ ",${words[5]},${words[-1]}," == *",$3,"* ]] && answer=ok
                fi
            done </proc/self/mountinfo
            ;;
        status)
            local key value rest
            while read -r key value rest; do
                [[ $key == "$2:" ]] && answer="=$value"
            done </proc/$$/status
            ;;
        limit)
            case $2 in
                4) answer="=$(ulimit -Sc):$(ulimit -Hc)" ;;
                6) answer="=$(ulimit -Su):$(ulimit -Hu)" ;;
                7) answer="=$(ulimit -Sn):$(ulimit -Hn)" ;;
            esac
            ;;
    esac
}

check() {
    local attempt=()
    while [[ $1 != -- ]]; do attempt+=("$1"); shift; done
    shift
    probe "${attempt[@]}"
    local came=$answer
    probe "$@"
    echo "$came $answer"
}
