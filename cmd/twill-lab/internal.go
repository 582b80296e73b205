package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/etcd"
)

// superviseCommand is the process that holds a lab; "up" starts it with a pipe
// for its progress and the lab's lock as descriptors 3 and 4.
func superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "supervise NAME", Hidden: true, Args: arguments(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			told, lock := os.NewFile(3, "progress"), os.NewFile(4, "lock")
			if told == nil || lock == nil {
				return errors.New("supervise is started by \"twill lab up\", not by hand")
			}
			// Held, and not inherited by what is started.
			defer lock.Close()
			closeOnExec(told, lock)
			return lab.Supervise(c.Context(), args[0], told, slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil)))
		},
	}
}

// etcdServerCommand is the lab's store.
func etcdServerCommand() *cobra.Command {
	var cfg etcd.Config
	c := &cobra.Command{
		Use: "etcd-server", Hidden: true, Args: arguments(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			server, err := etcd.Start(c.Context(), cfg)
			if err != nil {
				return err
			}
			select {
			case err := <-server.Err():
				return errors.Join(fmt.Errorf("etcd: %w", err), server.Close())
			case <-c.Context().Done():
				return server.Close()
			}
		},
	}
	c.Flags().StringVar(&cfg.Dir, "dir", "", "where the data is")
	c.Flags().StringVar(&cfg.LogFile, "log", "/dev/stderr", "where warnings go")
	c.Flags().StringSliceVar(&cfg.ListenURLs, "listen", nil, "http://ADDRESS:PORT or unix:///PATH")
	return c
}

// enterCommand executes a command in the namespaces of a task, with the
// environment as it is.
func enterCommand() *cobra.Command {
	return &cobra.Command{
		Use: "enter TASK -- COMMAND...", Hidden: true, Args: arguments(cobra.MinimumNArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error { return lab.Exec(args[0], args[1:]) },
	}
}

func closeOnExec(files ...*os.File) {
	for _, f := range files {
		syscall.CloseOnExec(int(f.Fd()))
	}
}
